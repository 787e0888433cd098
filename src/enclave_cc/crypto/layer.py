"""ocicrypt's layer cipher, AES_256_CTR_HMAC_SHA256, as a stream.

AES-256-CTR with a 16-byte initial counter block, big endian; HMAC-SHA-256 over the ciphertext under the *same* key
(ocicrypt, blockcipher/blockcipher_aes_ctr.go). What `LayerCipher.update` returns is not authentic before `verify`.
"""

from __future__ import annotations

import hashlib
import hmac

from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import CTR

from enclave_cc.crypto.secret import Secret
from enclave_cc.errors import PeerError

KEY_SIZE = 32
NONCE_SIZE = 16
HMAC_SIZE = 32
CIPHER_NAME = "AES_256_CTR_HMAC_SHA256"

_Buffer = bytes | bytearray | memoryview


def _open_context(symkey: Secret, nonce: bytes) -> CipherContext:
    # CTR encrypts and decrypts alike
    return Cipher(AES256(symkey.reveal()), CTR(nonce)).encryptor()


class LayerCipher:
    """Decrypts one layer, once. Raises `PeerError("layer-broken")` if key, nonce or HMAC has the wrong size."""

    __slots__ = ("_context", "_expected", "_mac")

    def __init__(self, symkey: Secret, nonce: bytes, expected_hmac: bytes) -> None:
        if len(symkey) != KEY_SIZE or len(nonce) != NONCE_SIZE or len(expected_hmac) != HMAC_SIZE:
            raise PeerError("layer-broken", "the layer's key, nonce or HMAC has the wrong size")
        self._context = _open_context(symkey, nonce)
        self._mac = hmac.new(symkey.reveal(), digestmod=hashlib.sha256)
        self._expected = expected_hmac

    def update(self, ciphertext: _Buffer) -> bytes:
        """Plaintext of the next bytes, not authenticated yet. Releases the GIL for large inputs."""
        self._mac.update(ciphertext)
        return self._context.update(ciphertext)

    def skip(self, ciphertext: _Buffer) -> None:
        """Covers the next bytes by the HMAC only: for a layer that is given up, to learn who broke it."""
        self._mac.update(ciphertext)

    def verify(self) -> None:
        """Call after the last byte. Raises `PeerError("layer-broken")` unless the HMAC covers exactly what was seen."""
        if not hmac.compare_digest(self._mac.digest(), self._expected):
            raise PeerError("layer-broken", "the encrypted layer does not authenticate (HMAC)")


class LayerEncrypter:
    """Encrypts one layer under a random key and nonce made for it."""

    __slots__ = ("_context", "_mac", "nonce", "symkey")

    def __init__(self) -> None:
        self.symkey = Secret.random(KEY_SIZE)
        self.nonce = Secret.random(NONCE_SIZE).reveal()
        self._context = _open_context(self.symkey, self.nonce)
        self._mac = hmac.new(self.symkey.reveal(), digestmod=hashlib.sha256)

    def update(self, plaintext: _Buffer) -> bytes:
        """Ciphertext of the next bytes; as many as came in."""
        ciphertext = self._context.update(plaintext)
        self._mac.update(ciphertext)
        return ciphertext

    def finish(self) -> bytes:
        """The 32-byte HMAC over the ciphertext; goes into the layer's public options."""
        return self._mac.digest()
