from __future__ import annotations

import json
from typing import Any

import pytest

from enclave_cc.crypto.jwk import TeeKey
from enclave_cc.errors import PeerError
from enclave_cc.wire.rcar import messages

KEY = TeeKey.generate().public
ATTESTATION: dict[str, Any] = {
    "init-data": {"format": "toml", "body": 'version = "0.1.0"'},
    "runtime-data": {"nonce": "bm9uY2U=", "tee-pubkey": dict(KEY.members)},
    "tee-evidence": {"primary_evidence": {"quote": "AAAA"}, "additional_evidence": ""},
}


def dump(value: object) -> bytes:
    return json.dumps(value).encode()


def test_request_as_guest_components_sends_it() -> None:
    body = b'{"version":"0.4.0","tee":"sgx","extra-params":{"supported-hash-algorithms":["sha256","sha384","sha512","sm3"]}}'
    request = messages.Request.parse(body)
    assert request.tee == "sgx"
    assert request.encode() == body


@pytest.mark.parametrize("version", ["0.1.1", "0.2.0", "0.4.1", "0.4", "1.0.0", "0.4.0-rc1", ""])
def test_other_versions(version: str) -> None:
    with pytest.raises(PeerError) as refused:
        messages.Request.parse(dump({"version": version, "tee": "sgx", "extra-params": ""}))
    assert refused.value.code == "kbs-protocol"


@pytest.mark.parametrize(
    "value",
    [
        {"version": "0.4.0", "tee": "sgx"},
        {"version": "0.4.0", "extra-params": ""},
        {"version": "0.4.0", "tee": "SGX!", "extra-params": ""},
        {"version": "0.4.0", "tee": 4, "extra-params": ""},
        {"version": 4, "tee": "sgx", "extra-params": ""},
        [],
        "x",
    ],
)
def test_broken_requests(value: object) -> None:
    with pytest.raises(PeerError) as refused:
        messages.Request.parse(dump(value))
    assert refused.value.code == "malformed"


def test_challenge() -> None:
    assert messages.Challenge("bm9uY2U=").encode() == b'{"nonce":"bm9uY2U=","extra-params":""}'
    assert messages.Challenge.parse(b'{"nonce":"bm9uY2U=","extra-params":""}').nonce == "bm9uY2U="
    assert messages.Challenge.parse(b'{"nonce":"x","extra-params":{"selected-hash-algorithm":"sha384"}}').nonce == "x"
    for body in (b'{"nonce":""}', b'{"nonce":5}', dump({"nonce": "x" * 513}), b"{}"):
        with pytest.raises(PeerError):
            messages.Challenge.parse(body)
    with pytest.raises(PeerError) as refused:
        messages.Challenge.parse(b'{"nonce":"x","extra-params":{"selected-hash-algorithm":"sha512"}}')
    assert refused.value.code == "kbs-protocol"


def test_attestation_round_trip() -> None:
    parsed = messages.Attestation.parse(dump(ATTESTATION))
    assert json.loads(parsed.encode()) == ATTESTATION
    assert messages.Attestation.parse(parsed.encode()) == parsed
    assert parsed.parse_additional() == {}
    without = {name: value for name, value in ATTESTATION.items() if name != "init-data"}
    assert messages.Attestation.parse(dump(without)).init_data is None
    assert messages.Attestation.parse(dump({**without, "init-data": None})).init_data is None
    assert "init-data" not in json.loads(messages.Attestation.parse(dump(without)).encode())


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("runtime-data",), None),
        (("runtime-data", "nonce"), 5),
        (("runtime-data", "nonce"), "\ud800"),
        (("runtime-data", "tee-pubkey"), {}),
        (("tee-evidence",), []),
        (("tee-evidence", "additional_evidence"), None),
        (("init-data",), "text"),
        (("init-data", "format"), "json"),
        (("init-data", "body"), 7),
    ],
)
def test_broken_attestations(path: tuple[str, ...], value: object) -> None:
    broken = json.loads(dump(ATTESTATION))
    inner = broken
    for name in path[:-1]:
        inner = inner[name]
    inner[path[-1]] = value
    with pytest.raises(PeerError) as refused:
        messages.Attestation.parse(dump(broken))
    assert refused.value.code == "malformed"


def test_primary_evidence_must_be_there() -> None:
    broken = json.loads(dump(ATTESTATION))
    del broken["tee-evidence"]["primary_evidence"]
    with pytest.raises(PeerError):
        messages.Attestation.parse(dump(broken))


@pytest.mark.parametrize(
    "body", [b"", b"{", b"\xff", b'{"a":NaN}', b'{"a":1,"a":2}', b'{"a":' + b"[" * 100_000, b'{"a":' + b"[" * 40 + b"]" * 40 + b"}"]
)
def test_bodies_that_are_not_strict_json(body: bytes) -> None:
    for parse in (messages.Request.parse, messages.Challenge.parse, messages.Attestation.parse, messages.Problem.parse):
        with pytest.raises(PeerError) as refused:
            parse(body)
        assert refused.value.code == "malformed"


def test_text_that_nothing_can_encode_again() -> None:
    """Half of a surrogate pair, as bytes that the standard library's reader takes."""
    body = dump(ATTESTATION).replace(b"bm9uY2U=", b"\xed\xa0\x80")
    assert json.loads(body)
    with pytest.raises(PeerError):
        messages.Attestation.parse(body)
    with pytest.raises(PeerError):
        messages.Attestation.parse(dump(ATTESTATION).decode().encode("utf-16"))


def test_problem() -> None:
    problem = messages.Problem("PolicyDeny", "denied, id 1", "kbs-denied", "1")
    wire = json.loads(problem.encode())
    assert wire["type"] == "https://github.com/confidential-containers/kbs/errors/PolicyDeny"
    assert messages.Problem.parse(problem.encode()) == problem
    upstream = messages.Problem.parse(
        b'{"type":"https://github.com/confidential-containers/kbs/errors/TokenNotFound","detail":"x\\ny"}'
    )
    assert (upstream.variant, upstream.code, upstream.id) == ("TokenNotFound", None, None)
    assert "\n" not in upstream.detail
    assert messages.Problem.parse(dump({"type": "x", "detail": "d", "code": 5, "id": []})).code is None


def test_sgx_evidence() -> None:
    assert messages.parse_sgx_evidence(messages.encode_sgx_evidence(b"quote")) == b"quote"
    for evidence in (None, {}, {"quote": 5}, {"quote": "!"}, {"quote": "AAA"}, [1]):
        with pytest.raises(PeerError):
            messages.parse_sgx_evidence(evidence)


def test_token_answer() -> None:
    assert messages.parse_token_answer(messages.encode_token_answer("a.b.c")) == "a.b.c"
    with pytest.raises(PeerError):
        messages.parse_token_answer(b"{}")
