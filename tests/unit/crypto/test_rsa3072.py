"""RSA-3072 with exponent 3, as SIGSTRUCT wants it."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from enclave_cc.crypto import rsa3072
from enclave_cc.errors import PeerError, UsageError


@pytest.fixture(scope="module")
def key() -> rsa3072.SigningKey:
    return rsa3072.SigningKey.generate()


def test_sign_and_verify(key: rsa3072.SigningKey) -> None:
    assert key.modulus.bit_length() == 3072
    signature = key.sign(b"message")
    assert signature == rsa3072.SigningKey.from_pem(key.to_pem()).sign(b"message")
    rsa3072.verify(key.modulus, signature, b"message")
    for bad in ((signature, b"Message"), (signature ^ 1, b"message"), (0, b"message")):
        with pytest.raises(PeerError) as caught:
            rsa3072.verify(key.modulus, *bad)
        assert caught.value.code == "measurement-changed"


@pytest.mark.parametrize("modulus", [0, 1, 2, 3**100, 2**3072 - 2, 2**3071])
def test_a_modulus_that_is_none(modulus: int) -> None:
    with pytest.raises(PeerError):
        rsa3072.verify(modulus, 1, b"")


def pem(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> bytes:
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


@pytest.mark.parametrize(
    "text",
    [
        b"",
        pem(ec.generate_private_key(ec.SECP256R1())),
        pem(rsa.generate_private_key(3, 2048)),
        pem(rsa.generate_private_key(65537, 3072)),
    ],
    ids=["empty", "ec", "2048", "65537"],
)
def test_other_keys_are_refused(text: bytes) -> None:
    with pytest.raises(UsageError):
        rsa3072.SigningKey.from_pem(text)
