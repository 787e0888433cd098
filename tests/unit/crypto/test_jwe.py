"""JWE: known answers of RFC 7518 and the spelling that guest-components insists on."""

from __future__ import annotations

import base64
import json

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.keywrap import aes_key_wrap

from enclave_cc.crypto import jwe
from enclave_cc.crypto.jwk import PublicJwk, TeeKey
from enclave_cc.crypto.secret import Secret
from enclave_cc.errors import PeerError


def b64u(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


# RFC 7518 appendix C
ALICE_D, BOB_X, BOB_Y = (
    "0_NxaRPUMQoAJt50Gz8YiTr8gRTwyEaCumd-MToTmIo",
    "weNJy2HscCSM6AEDTDg04biOvhFhyyWvOHQfeF_PxMQ",
    "e8lnCO-AlStT-NJVX-crhB7QRYhiix03illJOVAOyck",
)


def test_key_derivation_and_wrap_known_answer() -> None:
    alice = ec.derive_private_key(int.from_bytes(b64u(ALICE_D)), ec.SECP256R1())
    bob = PublicJwk.parse({"kty": "EC", "crv": "P-256", "alg": "ECDH-ES+A256KW", "x": BOB_X, "y": BOB_Y})
    assert isinstance(bob.key, ec.EllipticCurvePublicKey)
    assert alice.exchange(ec.ECDH(), bob.key).hex().startswith("9e56d91d")
    kek = jwe._derive_kek(alice, bob.key)
    assert kek == Secret(bytes.fromhex("89ab838633757805bd678cb164f2427776824e8f784152f23747096449921f46"))
    wrapped = "4f435558aa16b9c4220e6995736766bd0f31572b7eee8e47d42d0c9da09fe4a145a6c7c00acfb445"
    assert aes_key_wrap(kek.reveal(), bytes(range(32))).hex() == wrapped


@pytest.mark.parametrize("kind", ["P-256", "P-521", "RSA"])
@pytest.mark.parametrize("plaintext", [b"", b"k" * 32, bytes(100_000)])
def test_round_trip(kind: str, plaintext: bytes) -> None:
    key = TeeKey.generate(kind)
    assert jwe.decrypt(jwe.encrypt(plaintext, key.public), key) == Secret(plaintext)


@pytest.mark.parametrize("kind", ["P-256", "P-521", "RSA"])
def test_header_is_spelled_as_upstream_spells_it_again(kind: str) -> None:
    """guest-components re-serialises the parsed header for its additional data: alg, enc, then sorted members."""
    message = json.loads(jwe.encrypt(b"x", TeeKey.generate(kind).public))
    text = b64u(message["protected"]).decode()
    header = json.loads(text)
    again = {"alg": header.pop("alg"), "enc": header.pop("enc")} | {
        name: dict(sorted(value.items())) for name, value in sorted(header.items())
    }
    assert json.dumps(again, separators=(",", ":")) == text
    assert set(message) == {"protected", "encrypted_key", "iv", "ciphertext", "tag"}
    if kind != "RSA":
        assert list(again["epk"]) == ["crv", "kty", "x", "y"]
        assert len(b64u(again["epk"]["x"])) == {"P-256": 32, "P-521": 66}[kind]


def test_a_header_in_another_order_is_read_as_received() -> None:
    """RFC 7516: the additional data are the received text, whatever its order and spaces."""
    from enclave_cc.crypto import aead, base64url

    key = TeeKey.generate("RSA")
    cek = Secret(bytes(range(32)))
    protected = base64url.encode(b'{ "enc": "A256GCM", "alg": "RSA-OAEP-256" }')
    sealed = aead.Aead(cek).encrypt(bytes(12), b"hello", protected.encode())
    assert not isinstance(key.public.key, ec.EllipticCurvePublicKey)
    message = {
        "protected": protected,
        "encrypted_key": base64url.encode(key.public.key.encrypt(cek.reveal(), jwe._OAEP)),
        "iv": base64url.encode(bytes(12)),
        "ciphertext": base64url.encode(sealed[:-16]),
        "tag": base64url.encode(sealed[-16:]),
    }
    assert jwe.decrypt(json.dumps(message).encode(), key) == Secret(b"hello")


@pytest.mark.parametrize("member", ["protected", "encrypted_key", "iv", "ciphertext", "tag"])
def test_any_changed_member_is_refused(member: str) -> None:
    key = TeeKey.generate()
    message = json.loads(jwe.encrypt(b"some secret bytes", key.public))
    raw = bytearray(b64u(message[member]))
    raw[len(raw) // 2] ^= 1
    message[member] = base64.urlsafe_b64encode(raw).rstrip(b"=").decode()
    with pytest.raises(PeerError) as refused:
        jwe.decrypt(json.dumps(message).encode(), key)
    assert refused.value.code in ("jwe-broken", "malformed")


@pytest.mark.parametrize(
    ("made_for", "read_by"), [("P-256", "P-256"), ("P-256", "P-521"), ("P-256", "RSA"), ("RSA", "RSA"), ("RSA", "P-256")]
)
def test_another_key_does_not_open_it(made_for: str, read_by: str) -> None:
    text = jwe.encrypt(b"x", TeeKey.generate(made_for).public)
    with pytest.raises(PeerError) as refused:
        jwe.decrypt(text, TeeKey.generate(read_by))
    assert refused.value.code == "jwe-broken"


def test_extensions_are_refused() -> None:
    key = TeeKey.generate()
    message = json.loads(jwe.encrypt(b"x", key.public))
    with pytest.raises(PeerError):
        jwe.decrypt(json.dumps({**message, "aad": "eA"}).encode(), key)
    header = json.loads(b64u(message["protected"]))
    for change in ({"zip": "DEF"}, {"crit": ["b64"]}, {"enc": "A128GCM"}, {"alg": "dir"}):
        protected = base64.urlsafe_b64encode(json.dumps({**header, **change}).encode()).rstrip(b"=").decode()
        with pytest.raises(PeerError):
            jwe.decrypt(json.dumps({**message, "protected": protected}).encode(), key)
