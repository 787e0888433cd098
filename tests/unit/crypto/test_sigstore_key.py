"""cosign's encrypted private keys: NaCl's own known answer for the box, and the envelope around it."""

from __future__ import annotations

import base64
import hashlib
import json
import os

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.poly1305 import Poly1305

from enclave_cc.crypto import sigstore_key
from enclave_cc.crypto.secret import Secret
from enclave_cc.crypto.signature import PublicKey
from enclave_cc.crypto.signing_key import SigningKey
from enclave_cc.errors import UsageError

# "Cryptography in NaCl", section 10; NaCl's tests/secretbox.c
KEY = bytes.fromhex("1b27556473e985d462cd51197a9a46c76009549eac6474f206c4ee0844f68389")
NONCE = bytes.fromhex("69696ee955b62b73cd62bda875fc73d68219e0036b7a0b37")
PLAIN = bytes.fromhex(
    "be075fc53c81f2d5cf141316ebeb0c7b5228c52a4c62cbd44b66849b64244ffce5ecbaaf33bd751a1ac728d45e6c61296cdc3c01233561f41db66cce"
    "314adb310e3be8250c46f06dceea3a7fa1348057e2f6556ad6b1318a024a838f21af1fde048977eb48f59ffd4924ca1c60902e52f0a089bc76897040"
    "e082f937763848645e0705"
)
SEALED = bytes.fromhex(
    "f3ffc7703f9400e52a7dfb4b3d3305d98e993b9f48681273c29650ba32fc76ce48332ea7164d96a4476fb8c531a1186ac0dfc17c98dce87b4da7f011"
    "ec48c97271d2c20f9b928fe2270d6fb863d51738b48eeee314a7cc8ab932164548e526ae90224368517acfeabd6bb3732bc0e9da99832b61ca01b6de"
    "56244a9e88d5f9b37973f622a43d14a6599b1f654cb45a74e355a5"
)


def test_nacls_known_answer() -> None:
    assert sigstore_key.open_secretbox(Secret(KEY), NONCE, SEALED).reveal() == PLAIN


@pytest.mark.parametrize("at", [0, 15, 16, 100, len(SEALED) - 1])
def test_a_changed_box_does_not_open(at: int) -> None:
    changed = SEALED[:at] + bytes([SEALED[at] ^ 1]) + SEALED[at + 1 :]
    for key, nonce, sealed in ((KEY, NONCE, changed), (bytes(32), NONCE, SEALED), (KEY, NONCE[::-1], SEALED), (KEY, NONCE, b"")):
        with pytest.raises(UsageError):
            sigstore_key.open_secretbox(Secret(key), nonce, sealed)


def seal(plain: bytes, password: bytes, kind: str = "SIGSTORE", **changes: object) -> bytes:
    """What go-securesystemslib's encrypted.Encrypt makes, with small scrypt parameters."""
    salt, nonce = os.urandom(32), os.urandom(24)
    key = hashlib.scrypt(password, salt=salt, n=1024, r=8, p=1, dklen=32)
    subkey = sigstore_key._hsalsa20(key, nonce[:16])
    stream = b"".join(sigstore_key._salsa20(subkey, nonce[16:], block) for block in range(8))
    ciphertext = bytes(a ^ b for a, b in zip(plain, stream[32:], strict=False))
    sealed = Poly1305.generate_tag(stream[:32], ciphertext) + ciphertext
    envelope = {
        "kdf": {"name": "scrypt", "params": {"N": 1024, "r": 8, "p": 1}, "salt": base64.b64encode(salt).decode()},
        "cipher": {"name": "nacl/secretbox", "nonce": base64.b64encode(nonce).decode()},
        "ciphertext": base64.b64encode(sealed).decode(),
        **changes,
    }
    body = base64.encodebytes(json.dumps(envelope).encode()).decode()
    return f"-----BEGIN ENCRYPTED {kind} PRIVATE KEY-----\n{body}-----END ENCRYPTED {kind} PRIVATE KEY-----\n".encode()


def test_a_key_of_cosign_signs() -> None:
    private = ec.generate_private_key(ec.SECP256R1())
    der = private.private_bytes(serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    spki = private.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    for kind in ("SIGSTORE", "COSIGN"):
        key = SigningKey.from_pem(Secret(seal(der, b"pass", kind)), Secret(b"pass"))
        PublicKey.from_pem(spki).verify(key.sign(b"m"), b"m")
    for password in (None, Secret(b""), Secret(b"wrong")):
        with pytest.raises(UsageError) as caught:
            SigningKey.from_pem(Secret(seal(der, b"pass")), password)
        assert "COSIGN_PASSWORD" in caught.value.fix


@pytest.mark.parametrize(
    "changes",
    [
        {"kdf": {"name": "argon2"}},
        {"kdf": {"name": "scrypt", "params": {"N": 1 << 30, "r": 8, "p": 1}, "salt": ""}},
        {"cipher": {"name": "x"}},
        {"ciphertext": 5},
        {"kdf": None},
    ],
)
def test_other_envelopes_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        SigningKey.from_pem(Secret(seal(b"x", b"pass", **changes)), Secret(b"pass"))
    with pytest.raises(UsageError):
        SigningKey.from_pem(Secret(b"-----BEGIN ENCRYPTED SIGSTORE PRIVATE KEY-----"), Secret(b"pass"))
