"""RSA-3072 with exponent 3 and PKCS #1 v1.5 over SHA-256: the one signature that SIGSTRUCT knows.

Intel SDM volume 3D, 38.14 (SIGSTRUCT): modulus and signature are 384 bytes, little-endian there; plain integers here.
"""

from __future__ import annotations

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from enclave_cc.errors import PeerError, UsageError

KEY_SIZE = 384
EXPONENT = 3


class SigningKey:
    """An enclave signer's private key."""

    __slots__ = ("_key",)

    def __init__(self, key: rsa.RSAPrivateKey) -> None:
        self._key = key

    @classmethod
    def generate(cls) -> SigningKey:
        return cls(rsa.generate_private_key(EXPONENT, KEY_SIZE * 8))

    @classmethod
    def from_pem(cls, pem: bytes) -> SigningKey:
        """Raises `UsageError("usage")` unless `pem` is an unencrypted RSA-3072 private key with exponent 3."""
        from cryptography.hazmat.primitives import serialization  # 8 ms, and verifying does without

        try:
            key = serialization.load_pem_private_key(pem, None)
        except (ValueError, TypeError) as error:
            raise UsageError("usage", "the enclave signing key is not an unencrypted PEM private key") from error
        if not isinstance(key, rsa.RSAPrivateKey) or key.key_size != KEY_SIZE * 8:
            raise UsageError("usage", "an enclave signing key is RSA with 3072 bits")
        if key.public_key().public_numbers().e != EXPONENT:
            raise UsageError("usage", "an enclave signing key has exponent 3")
        return cls(key)

    def to_pem(self) -> bytes:
        """PKCS #8, unencrypted: for a file that only its owner can read."""
        from cryptography.hazmat.primitives import serialization

        return self._key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())

    @property
    def modulus(self) -> int:
        return self._key.public_key().public_numbers().n

    def sign(self, message: bytes) -> int:
        """The signature over `message` as an integer; the same each time."""
        return int.from_bytes(self._key.sign(message, padding.PKCS1v15(), hashes.SHA256()), "big")


def verify(modulus: int, signature: int, message: bytes) -> None:
    """Raises `PeerError("malformed")` for a modulus that is none, `PeerError("measurement-changed")` for a wrong signature."""
    try:
        key = rsa.RSAPublicNumbers(EXPONENT, modulus).public_key()
    except ValueError as error:
        raise PeerError("malformed", "the SIGSTRUCT's modulus is not usable") from error
    if modulus.bit_length() != KEY_SIZE * 8:
        raise PeerError("malformed", "the SIGSTRUCT's modulus does not have 3072 bits")
    try:
        key.verify(signature.to_bytes(KEY_SIZE, "big"), message, padding.PKCS1v15(), hashes.SHA256())
    except InvalidSignature as error:
        raise PeerError("measurement-changed", "the SIGSTRUCT's signature does not fit") from error
