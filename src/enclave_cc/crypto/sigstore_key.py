"""Private keys as `cosign generate-key-pair` writes them: PKCS#8 DER under scrypt and NaCl's secretbox.

go-securesystemslib `encrypted/encrypted.go`; secretbox is XSalsa20 and Poly1305 (Bernstein, "Cryptography in NaCl",
section 9). `cryptography` has no Salsa20, so that it is written out here, for the few blocks of one key.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import struct

from cryptography.hazmat.primitives.poly1305 import Poly1305

from enclave_cc.crypto.secret import Secret
from enclave_cc.errors import UsageError

_KINDS = ("ENCRYPTED SIGSTORE PRIVATE KEY", "ENCRYPTED COSIGN PRIVATE KEY")
_MEMORY_LIMIT = 512 << 20  # bytes for scrypt; cosign's own parameters take 64 MiB
_SIGMA = struct.unpack("<4I", b"expand 32-byte k")
_MASK = 0xFFFFFFFF
_TAG_SIZE = 16


def is_encrypted(pem: Secret) -> bool:
    """Whether this is such a key."""
    return any(f"-----BEGIN {kind}-----".encode() in pem.reveal() for kind in _KINDS)


def decrypt(pem: Secret, password: Secret | None) -> Secret:
    """The PKCS#8 DER inside. Raises `UsageError("usage")` if the password is missing or wrong, or the form unknown."""
    if password is None:
        raise UsageError("usage", "the signing key is encrypted", "Give its password in COSIGN_PASSWORD.")
    try:
        lines = pem.reveal().decode("ascii").split("-----")
        envelope = json.loads(base64.b64decode("".join(lines[2].split()), validate=True))
        kdf, cipher = envelope["kdf"], envelope["cipher"]
        if (kdf["name"], cipher["name"]) != ("scrypt", "nacl/secretbox"):
            raise ValueError("another method")
        n, r, p = (int(kdf["params"][name]) for name in ("N", "r", "p"))
        if n * r * 128 > _MEMORY_LIMIT or p > 16:
            raise ValueError("too much memory")
        key = hashlib.scrypt(
            password.reveal(), salt=base64.b64decode(kdf["salt"]), n=n, r=r, p=p, maxmem=_MEMORY_LIMIT + (1 << 20), dklen=32
        )
        nonce, sealed = base64.b64decode(cipher["nonce"]), base64.b64decode(envelope["ciphertext"])
    except (ValueError, KeyError, TypeError, IndexError, binascii.Error) as error:
        raise UsageError("usage", "the signing key is not in the form that cosign writes") from error
    return open_secretbox(Secret(key), nonce, sealed)


def open_secretbox(key: Secret, nonce: bytes, sealed: bytes) -> Secret:
    """NaCl's `crypto_secretbox_open`: 32-byte key, 24-byte nonce, tag before ciphertext. Raises `UsageError("usage")`."""
    if len(nonce) != 24 or len(sealed) < _TAG_SIZE:
        raise UsageError("usage", "the signing key is not in the form that cosign writes")
    subkey = _hsalsa20(key.reveal(), nonce[:16])
    tag, ciphertext = sealed[:_TAG_SIZE], sealed[_TAG_SIZE:]
    stream = b"".join(_salsa20(subkey, nonce[16:], block) for block in range((len(ciphertext) + 32 + 63) // 64))
    if not hmac.compare_digest(Poly1305.generate_tag(stream[:32], ciphertext), tag):
        raise UsageError("usage", "the password does not open the signing key", "Give its password in COSIGN_PASSWORD.")
    return Secret(bytes(a ^ b for a, b in zip(ciphertext, stream[32:], strict=False)))


def _rounds(state: list[int]) -> list[int]:
    x = state[:]

    def quarter(a: int, b: int, c: int, d: int) -> None:
        for to, left, right, shift in ((b, a, d, 7), (c, b, a, 9), (d, c, b, 13), (a, d, c, 18)):
            total = (x[left] + x[right]) & _MASK
            x[to] ^= (total << shift | total >> (32 - shift)) & _MASK

    for _ in range(10):
        for column in ((0, 4, 8, 12), (5, 9, 13, 1), (10, 14, 2, 6), (15, 3, 7, 11)):
            quarter(*column)
        for row in ((0, 1, 2, 3), (5, 6, 7, 4), (10, 11, 8, 9), (15, 12, 13, 14)):
            quarter(*row)
    return x


def _state(key: bytes, middle: bytes) -> list[int]:
    k, m = struct.unpack("<8I", key), struct.unpack("<4I", middle)
    return [_SIGMA[0], *k[:4], _SIGMA[1], *m, _SIGMA[2], *k[4:], _SIGMA[3]]


def _hsalsa20(key: bytes, nonce: bytes) -> bytes:
    x = _rounds(_state(key, nonce))
    return struct.pack("<8I", *(x[i] for i in (0, 5, 10, 15, 6, 7, 8, 9)))


def _salsa20(key: bytes, nonce: bytes, block: int) -> bytes:
    state = _state(key, nonce + struct.pack("<Q", block))
    return struct.pack("<16I", *((a + b) & _MASK for a, b in zip(state, _rounds(state), strict=True)))
