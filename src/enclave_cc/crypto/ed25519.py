"""Ed25519 (RFC 8032) with raw 32-byte public keys, as signed notes carry them."""

from __future__ import annotations

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key

from enclave_cc.crypto.secret import Secret
from enclave_cc.errors import PeerError, UsageError

PUBLIC_KEY_SIZE = 32
SIGNATURE_SIZE = 64


class SigningKey:
    """A private key."""

    __slots__ = ("_key", "public")

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.public: bytes = key.public_key().public_bytes_raw()

    @classmethod
    def generate(cls) -> SigningKey:
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def from_pem(cls, pem: Secret) -> SigningKey:
        """Raises `UsageError("bad-config")` unless `pem` is an unencrypted Ed25519 private key."""
        try:
            key = load_pem_private_key(pem.reveal(), None)
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise UsageError("bad-config", "the key is not an unencrypted private key in PEM") from error
        if not isinstance(key, Ed25519PrivateKey):
            raise UsageError("bad-config", "the key is not Ed25519")
        return cls(key)

    def to_pem(self) -> Secret:
        """Unencrypted PKCS#8."""
        return Secret(self._key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))

    def sign(self, message: bytes) -> bytes:
        """64 bytes."""
        return self._key.sign(message)


def verify(public: bytes, signature: bytes, message: bytes, *, code: str, what: str) -> None:
    """Raises `PeerError(code, what)` unless `signature` (64 bytes) over `message` is by `public` (32 bytes)."""
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
    except (ValueError, InvalidSignature) as error:
        raise PeerError(code, what) from error
