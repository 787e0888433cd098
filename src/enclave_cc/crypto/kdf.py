"""Key derivation: HKDF (RFC 5869), Concat KDF (NIST SP 800-56A, RFC 7518 4.6.2) and AES-CMAC (RFC 4493)."""

from __future__ import annotations

from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.cmac import CMAC
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.concatkdf import ConcatKDFHash
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from enclave_cc.crypto.secret import Secret


def hkdf_sha256(key_material: Secret, *, salt: bytes, info: bytes, size: int) -> Secret:
    """HKDF-SHA-256, extract and expand; `size` bytes."""
    return Secret(HKDF(SHA256(), size, salt, info).derive(key_material.reveal()))


def concat_kdf_sha256(shared: Secret, *, other_info: bytes, size: int) -> Secret:
    """Single-step KDF with SHA-256; `size` bytes."""
    return Secret(ConcatKDFHash(SHA256(), size, other_info).derive(shared.reveal()))


def aes_cmac(key: Secret, message: bytes) -> bytes:
    """16-byte AES-CMAC of `message`."""
    mac = CMAC(AES(key.reveal()))
    mac.update(message)
    return mac.finalize()
