"""Signed statements about bundles: in-toto in DSSE, by keys that the owner named, and every way to forge one."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from enclave_cc.crypto.secret import Secret
from enclave_cc.crypto.signing_key import SigningKey
from enclave_cc.errors import PeerError
from enclave_cc.owner.reference import envelope, statement
from enclave_cc.owner.reference.statement import Build, Dependency

REFERENCE = {
    "role": "agent",
    "libos": "simulated",
    "mr_enclave": "aa" * 32,
    "mr_signer": "bb" * 32,
    "isv_prod_id": 1,
    "isv_svn": 3,
    "debug": False,
    "inputs": {"enclave_cc": "0.1", "debian": {}, "wheels": []},
}
BUILD = Build(
    builder="https://ci.example/enclave-cc",
    started=1_700_000_000,
    finished=1_700_000_060,
    dependencies=[
        Dependency("git+https://example/enclave-cc", {"gitCommit": "c0" * 20}),
        Dependency("lock", {"sha256": "dd" * 32}),
    ],
)
KEY, OTHER = SigningKey.generate(), SigningKey.generate()
KEYS = {"ci": KEY.public}

# Ed25519 of RFC 8032, 7.1, TEST 1; in PKCS#8 (RFC 8410).
ED25519 = Secret(
    b"-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIJ1hsZ3v/VpguoRK9JLsLMREScVpezJpGXA7rAMcrn9g\n-----END PRIVATE KEY-----\n"
)


def make(**changes: Any) -> dict[str, Any]:
    return statement.make_statement({**REFERENCE, **changes}, "ee" * 32, BUILD)


def test_a_signed_statement_gives_reference_values_with_provenance() -> None:
    (value,) = statement.verify(statement.sign(make(), KEY, expires=1_900_000_000), KEYS)
    assert (value.name, value.value, value.expires) == ("sgx_mr_enclave", "aa" * 32, 1_900_000_000)
    assert value.source["signed_by"] == "ci"
    assert value.source["key_id"] == KEY.public.key_id
    assert value.source["isv_svn"] == 3
    assert value.source["provenance"] == {
        "builder": "https://ci.example/enclave-cc",
        "built": "2023-11-14T22:14:20Z",
        "commit": "c0" * 20,
        "inputs": {"lock": "dd" * 32},
    }
    (by_signer,) = statement.verify(statement.sign(make(), KEY), KEYS, by_signer=True)
    assert by_signer.value == {"mr_signer": "bb" * 32, "isv_prod_id": 1, "min_isv_svn": 3}
    assert by_signer.expires is None


def test_any_of_the_owners_keys_and_any_kind() -> None:
    ed25519 = SigningKey.from_pem(ED25519)
    keys = {"a": OTHER.public, "b": ed25519.public, "c": KEY.public}
    assert statement.verify(statement.sign(make(), ed25519), keys)[0].source["signed_by"] == "b"
    assert statement.verify(statement.sign(make(), KEY), keys)[0].source["signed_by"] == "c"


def test_pae_as_dsse_has_it() -> None:
    """The vector of secure-systems-lab/dsse `protocol.md`: signed bytes of type "http://example.com/HelloWorld"."""
    key = SigningKey.from_pem(ED25519)
    body = envelope.sign(b"hello world", "http://example.com/HelloWorld", key)
    signature = base64.b64decode(json.loads(body)["signatures"][0]["sig"])
    assert signature == key.sign(b"DSSEv1 29 http://example.com/HelloWorld 11 hello world")


def test_the_url_safe_alphabet_is_taken() -> None:
    document = json.loads(statement.sign(make(), KEY))
    for name in ("payload",):
        document[name] = document[name].replace("+", "-").replace("/", "_")
    document["signatures"][0]["sig"] = document["signatures"][0]["sig"].replace("+", "-").replace("/", "_")
    assert statement.verify(json.dumps(document).encode(), KEYS)


def test_unknown_keys() -> None:
    with pytest.raises(PeerError) as refused:
        statement.verify(statement.sign(make(), OTHER), KEYS)
    assert refused.value.code == "signature-untrusted"
    assert OTHER.public.key_id[:16] in refused.value.what
    with pytest.raises(PeerError) as refused:
        statement.verify(statement.sign(make(), KEY), {})
    assert refused.value.code == "signature-untrusted"


def test_the_hint_names_no_key() -> None:
    """A stranger's signature under the owner's key id."""
    document = json.loads(statement.sign(make(), OTHER))
    document["signatures"][0]["keyid"] = KEY.public.key_id
    with pytest.raises(PeerError) as refused:
        statement.verify(json.dumps(document).encode(), KEYS)
    assert refused.value.code == "signature-wrong"


@pytest.mark.parametrize("change", ["payload", "payloadType"])
def test_changed_content(change: str) -> None:
    document = json.loads(statement.sign(make(), KEY))
    if change == "payload":
        payload = base64.b64decode(document["payload"]).replace(b"aa" * 32, b"ab" * 32)
        document["payload"] = base64.b64encode(payload).decode()
    else:
        document["payloadType"] = "application/json"
    with pytest.raises(PeerError) as refused:
        statement.verify(json.dumps(document).encode(), KEYS)
    assert refused.value.code == ("signature-wrong" if change == "payload" else "malformed")


def _without(*path: str) -> dict[str, Any]:
    document = make()
    inner: Any = document
    for name in path[:-1]:
        inner = inner[name]
    del inner[path[-1]]
    return document


@pytest.mark.parametrize(
    "document",
    [
        {**make(), "_type": "https://in-toto.io/Statement/v0.1"},
        {**make(), "predicateType": "https://slsa.dev/provenance/v0.2"},
        {**make(), "predicate": {}},
        {**make(), "predicate": {**make()["predicate"], "buildDefinition": {"buildType": "other"}}},
        {**make(), "predicate": {**make()["predicate"], "runDetails": {"builder": {}}}},
        {**make(), "subject": []},
        {**make(), "subject": [5]},
        {**make(), "subject": [{"digest": {}, "annotations": {}}]},
        {**make(), "subject": [{**make()["subject"][0], "digest": {"mrEnclave": "AA" * 32}}]},
        {
            **make(),
            "subject": [{**make()["subject"][0], "annotations": {**make()["subject"][0]["annotations"], "expires": "soon"}}],
        },
        {**make(), "subject": [{**make()["subject"][0], "annotations": {**make()["subject"][0]["annotations"], "isv_svn": -1}}]},
        make(role="other"),
        _without("subject"),
        _without("predicate", "runDetails"),
    ],
)
def test_signed_statements_of_another_form(document: dict[str, Any]) -> None:
    with pytest.raises(PeerError) as refused:
        statement.verify(envelope.sign(json.dumps(document).encode(), statement.PAYLOAD_TYPE, KEY), KEYS)
    assert refused.value.code == "malformed"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{}",
        b'{"payloadType":"application/vnd.in-toto+json","payload":"e30=","signatures":[]}',
        b'{"payloadType":"application/vnd.in-toto+json","payload":"e30=","signatures":[5]}',
        b'{"payloadType":"application/vnd.in-toto+json","payload":"!","signatures":[{"sig":"AA=="}]}',
        b'{"payloadType":"application/vnd.in-toto+json","payload":"e30=","signatures":[{"sig":5}]}',
        b" " * (envelope.MAX_SIZE + 1),
    ],
)
def test_broken_envelopes(body: bytes) -> None:
    with pytest.raises(PeerError) as refused:
        statement.verify(body, KEYS)
    assert refused.value.code == "malformed"
