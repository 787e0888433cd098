"""What RCAR's parsers promise for any bytes: `PeerError` or a value that encodes to the same again."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from enclave_cc.crypto import base64url, jwe
from enclave_cc.crypto.jwk import PublicJwk, TeeKey
from enclave_cc.crypto.jws import SigningKey
from enclave_cc.errors import PeerError
from enclave_cc.owner.reference import rvps, values
from enclave_cc.wire.rcar import binding, canonical, messages, token
from enclave_cc.wire.rcar.initdata import InitData
from enclave_cc.wire.rcar.uri import ResourcePath, ResourceUri

KEY = TeeKey.generate()
SIGNER = SigningKey.generate("EdDSA")
MODEST = settings(max_examples=60, deadline=None)

texts = st.text(alphabet=st.characters(blacklist_categories=["Cs"]), max_size=60)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)
NAMES = [
    "version",
    "tee",
    "extra-params",
    "nonce",
    "type",
    "detail",
    "code",
    "id",
    "token",
    "runtime-data",
    "tee-evidence",
    "tee-pubkey",
    "init-data",
    "format",
    "body",
    "primary_evidence",
    "additional_evidence",
    "kty",
    "crv",
    "alg",
    "x",
    "y",
    "n",
    "e",
    "payload",
    "role",
    "protected",
    "encrypted_key",
    "iv",
    "ciphertext",
    "tag",
    "enc",
    "epk",
    "quote",
]
named = st.recursive(
    json_values | st.sampled_from(["0.4.0", "0.1.0", "sgx", "EC", "RSA", "P-256", "ECDH-ES+A256KW", "toml", "sample", "", "AAAA"]),
    lambda inner: st.dictionaries(st.sampled_from(NAMES), inner, max_size=6),
    max_leaves=20,
)
bodies = st.binary(max_size=200) | named.map(lambda value: json.dumps(value).encode())


def parse_all(data: bytes) -> None:
    text = data.decode("utf-8", "replace")
    for parse in (
        messages.Request.parse,
        messages.Challenge.parse,
        messages.Attestation.parse,
        messages.Problem.parse,
        messages.parse_token_answer,
        rvps.parse_message,
        values.parse_bundle_reference,
        lambda raw: jwe.decrypt(raw, KEY),
        lambda raw: SIGNER.public.verify(text),
        lambda raw: ResourceUri.parse(text),
        lambda raw: ResourcePath.parse(text),
        lambda raw: InitData.parse(text),
    ):
        with contextlib.suppress(PeerError):
            parse(data)


@MODEST
@given(bodies)
@example(b'{"a":' * 2000)
@example(b'{"nonce":"\\ud800"}')
@example(b'{"version":1e999}')
@example(b'{"version":1' + b"0" * 5000 + b"}")
def test_parsers_raise_nothing_but_peer_error(data: bytes) -> None:
    parse_all(data)


@MODEST
@given(named)
def test_keys_and_tokens_of_any_shape(value: Any) -> None:
    with contextlib.suppress(PeerError):
        PublicJwk.parse(value)
    with contextlib.suppress(PeerError):
        messages.parse_sgx_evidence(value)
    if isinstance(value, dict):
        with contextlib.suppress(PeerError):
            token.find_tee_key({"submods": {"cpu0": {token.EVIDENCE: {"runtime_data_claims": value}}}, **value})


@MODEST
@given(nonce=texts, additional=texts, evidence=json_values, init=st.none() | texts)
def test_attestations_come_back_as_they_went(nonce: str, additional: str, evidence: Any, init: str | None) -> None:
    body = None if init is None else messages.InitDataBody(init)
    made = messages.Attestation(nonce, KEY.public, evidence, additional, body)
    assert messages.Attestation.parse(made.encode()) == made
    assert len(binding.compute_report_data(nonce, KEY.public, additional)) == 48


@MODEST
@given(value=json_values)
def test_canonical_json_is_one_spelling(value: Any) -> None:
    text = canonical.encode({"a": value})
    assert canonical.encode(canonical.parse_object(text, "x")) == text


@MODEST
@given(plaintext=st.binary(max_size=300), position=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_no_bit_of_a_jwe_can_change(plaintext: bytes, position: int, bit: int) -> None:
    """Any flipped bit is refused, or (white space, say) changes nothing of the plaintext."""
    text = bytearray(jwe.encrypt(plaintext, KEY.public))
    text[position % len(text)] ^= 1 << bit
    try:
        opened = jwe.decrypt(bytes(text), KEY)
    except PeerError:
        return
    assert opened.reveal() == plaintext


segments = st.from_regex(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,20}", fullmatch=True)


@MODEST
@given(st.tuples(segments, segments, segments))
def test_paths_are_three_segments(parts: tuple[str, str, str]) -> None:
    path = ResourcePath(*parts)
    assert ResourcePath.parse(str(path)) == path
    assert ResourceUri.parse(path.uri).segments == parts


@MODEST
@given(st.text(max_size=40))
def test_a_path_never_climbs(text: str) -> None:
    try:
        path = ResourcePath.parse(text)
    except PeerError:
        return
    assert not any(segment in ("", ".", "..") or segment.startswith(".") for segment in str(path).split("/"))


@pytest.mark.parametrize("size", range(8))
def test_base64url_has_one_spelling(size: int) -> None:
    text = base64url.encode(bytes(range(size)))
    for index in range(len(text)):
        for other in "Aa0-_":
            changed = text[:index] + other + text[index + 1 :]
            with contextlib.suppress(PeerError):
                assert changed == text or base64url.decode(changed, "x") != bytes(range(size))
