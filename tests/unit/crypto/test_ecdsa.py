"""Raw ECDSA P-256, as SGX carries it."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from enclave_cc.crypto import ecdsa
from enclave_cc.errors import PeerError, UsageError


def pem(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> bytes:
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


def test_a_known_signature() -> None:
    """RFC 6979 A.2.5, P-256 with SHA-256, message "sample"."""
    public = bytes.fromhex(
        "60fed4ba255a9d31c961eb74c6356d68c049b8923b61fa6ce669622e60f29fb67903fe1008b8bc99a41ae9e95628bc64f2f1b20c2d7e9f5177a3c294d4462299"
    )
    signature = bytes.fromhex(
        "efd48b2aacb6a8fd1140dd9cd45e81d69d2c877b56aaf991c34d0ea84eaf3716f7cb1c942d657c41d436c7a1b6e29f65f3e900dbb9aff4064dc4ab2f843acda8"
    )
    ecdsa.verify(public, signature, b"sample", code="quote-refused", what="no")
    for bad in ((public, signature, b"Sample"), (public, signature[:-1], b"sample"), (public, signature + b"\0", b"sample")):
        with pytest.raises(PeerError) as caught:
            ecdsa.verify(*bad, code="quote-refused", what="no")
        assert (caught.value.code, caught.value.what) == ("quote-refused", "no")


@pytest.mark.parametrize("public", [bytes(64), b"\xff" * 64, b"", b"\1" * 63])
def test_a_key_that_is_no_point(public: bytes) -> None:
    with pytest.raises(PeerError):
        ecdsa.verify(public, bytes(64), b"", code="quote-refused", what="no")


def test_sign_and_reload() -> None:
    key = ecdsa.SigningKey.from_pem(ecdsa.SigningKey.generate().to_pem())
    signature = key.sign(b"message")
    assert len(signature) == len(key.public) == 64
    ecdsa.verify(key.public, signature, b"message", code="quote-refused", what="no")


@pytest.mark.parametrize(
    "text",
    [b"", b"garbage", pem(ec.generate_private_key(ec.SECP384R1())), pem(rsa.generate_private_key(65537, 2048))],
    ids=["empty", "garbage", "p384", "rsa"],
)
def test_other_keys_are_refused(text: bytes) -> None:
    with pytest.raises(UsageError):
        ecdsa.SigningKey.from_pem(text)
