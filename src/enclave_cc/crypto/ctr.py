"""AES-256-CTR of one short message (NIST SP 800-38A 6.5). It authenticates nothing: the caller says what does."""

from __future__ import annotations

from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import CTR

from enclave_cc.crypto.secret import Secret

COUNTER_SIZE = 16


def apply_ctr(key: Secret, counter_block: bytes, data: bytes) -> bytes:
    """`data` en- or decrypted with the 32-byte `key` from the 16-byte first counter block."""
    context = Cipher(AES256(key.reveal()), CTR(counter_block)).encryptor()
    return context.update(data) + context.finalize()
