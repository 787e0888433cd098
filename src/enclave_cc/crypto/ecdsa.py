"""ECDSA P-256 over SHA-256 with raw r‖s signatures and x‖y public keys, as SGX quotes and collateral carry them.

FIPS 186-4; Intel SGX ECDSA QuoteLibReference, A.4. Big-endian, 64 bytes each.
"""

from __future__ import annotations

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature

from enclave_cc.errors import PeerError, UsageError

PUBLIC_KEY_SIZE = 64
SIGNATURE_SIZE = 64


class SigningKey:
    """A P-256 private key."""

    __slots__ = ("_key", "public")

    def __init__(self, key: ec.EllipticCurvePrivateKey) -> None:
        self._key = key
        numbers = key.public_key().public_numbers()
        self.public: bytes = numbers.x.to_bytes(32) + numbers.y.to_bytes(32)

    @classmethod
    def generate(cls) -> SigningKey:
        return cls(ec.generate_private_key(ec.SECP256R1()))

    @classmethod
    def from_pem(cls, pem: bytes) -> SigningKey:
        """Raises `UsageError("usage")` unless `pem` is an unencrypted P-256 private key."""
        from cryptography.hazmat.primitives import serialization  # 8 ms

        try:
            key = serialization.load_pem_private_key(pem, None)
        except (ValueError, TypeError) as error:
            raise UsageError("usage", "the key is not an unencrypted PEM private key") from error
        if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
            raise UsageError("usage", "the key is not an elliptic curve key on P-256")
        return cls(key)

    def to_pem(self) -> bytes:
        """PKCS #8, unencrypted: for a file that only its owner can read."""
        from cryptography.hazmat.primitives import serialization

        return self._key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())

    def sign(self, message: bytes) -> bytes:
        """64 bytes r‖s."""
        r, s = decode_dss_signature(self._key.sign(message, ec.ECDSA(hashes.SHA256())))
        return r.to_bytes(32, "big") + s.to_bytes(32, "big")

    def reveal(self) -> ec.EllipticCurvePrivateKey:
        """The key for `crypto.x509`, which signs certificates with it."""
        return self._key


def verify(public: bytes, signature: bytes, message: bytes, *, code: str, what: str) -> None:
    """Raises `PeerError(code, what)` unless `signature` (r‖s) over `message` is by `public` (x‖y)."""
    try:
        key = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), b"\x04" + public)
        der = encode_dss_signature(int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big"))
        if len(signature) != SIGNATURE_SIZE:
            raise ValueError("length")
        key.verify(der, message, ec.ECDSA(hashes.SHA256()))
    except (ValueError, InvalidSignature) as error:
        raise PeerError(code, what) from error
