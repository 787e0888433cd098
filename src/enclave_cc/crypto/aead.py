"""AES-GCM (NIST SP 800-38D). The only place that names the cipher."""

from __future__ import annotations

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from enclave_cc.crypto.secret import Secret
from enclave_cc.errors import PeerError

TAG_SIZE = 16
NONCE_SIZE = 12


class Aead:
    """AES-GCM under one key (16 or 32 bytes). Safe to use from many threads; releases the GIL for large inputs.

    The caller owns nonce uniqueness: see where each nonce comes from before adding a use.
    """

    __slots__ = ("_cipher",)

    def __init__(self, key: Secret) -> None:
        self._cipher = AESGCM(key.reveal())

    def encrypt(self, nonce: bytes, plaintext: bytes | bytearray | memoryview, aad: bytes) -> bytes:
        """Ciphertext with the 16-byte tag at its end."""
        return self._cipher.encrypt(nonce, plaintext, aad)

    def decrypt(self, nonce: bytes, ciphertext: bytes | bytearray | memoryview, aad: bytes, *, code: str = "seal-broken") -> bytes:
        """Plaintext. Raises `PeerError(code)` if any of nonce, ciphertext, tag or aad is not what was encrypted."""
        try:
            return self._cipher.decrypt(nonce, ciphertext, aad)
        except (InvalidTag, ValueError) as error:
            raise PeerError(code, "the ciphertext does not authenticate") from error

    def encrypt_into(self, nonce: bytes, plaintext: bytes | bytearray | memoryview, aad: bytes, out: bytearray | memoryview) -> int:
        """As `encrypt`, into `out` (exactly plaintext + 16 bytes); returns the bytes written."""
        return self._cipher.encrypt_into(nonce, plaintext, aad, out)

    def decrypt_into(
        self,
        nonce: bytes,
        ciphertext: bytes | bytearray | memoryview,
        aad: bytes,
        out: bytearray | memoryview,
        *,
        code: str = "seal-broken",
    ) -> int:
        """As `decrypt`, into `out` (exactly ciphertext - 16 bytes); returns the bytes written."""
        try:
            return self._cipher.decrypt_into(nonce, ciphertext, aad, out)
        except (InvalidTag, ValueError) as error:
            raise PeerError(code, "the ciphertext does not authenticate") from error
