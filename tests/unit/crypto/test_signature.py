"""Signing keys and public keys, with openssl as the other party."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from enclave_cc.crypto.secret import Secret
from enclave_cc.crypto.signature import PublicKey
from enclave_cc.crypto.signing_key import SigningKey
from enclave_cc.errors import PeerError, UsageError

GENERATE = {
    "p256": ["ecparam", "-genkey", "-name", "prime256v1", "-noout"],
    "p384": ["ecparam", "-genkey", "-name", "secp384r1", "-noout"],
    "ed25519": ["genpkey", "-algorithm", "ed25519"],
    "rsa": ["genrsa", "2048"],
}


def openssl(*words: str | Path, data: bytes = b"") -> bytes:
    return subprocess.run(["openssl", *words], check=True, capture_output=True, input=data).stdout


@pytest.mark.parametrize("kind", GENERATE)
def test_reads_openssls_keys_and_signs_what_it_verifies(kind: str, tmp_path: Path) -> None:
    pem = openssl(*GENERATE[kind])
    pkcs8 = openssl("pkcs8", "-topk8", "-nocrypt", data=pem)
    public = PublicKey.from_pem(openssl("pkey", "-pubout", data=pem))
    for form in (pem, pkcs8):
        key = SigningKey.from_pem(Secret(form))
        assert key.public.key_id == public.key_id
        assert public.verify(key.sign(b"message"), b"message") == b"message"
        with pytest.raises(PeerError) as caught:
            public.verify(key.sign(b"message"), b"massage")
        assert caught.value.code == "signature-wrong"
    for junk in (b"", b"x" * 64, b"\x30\x06\x02\x01\x00\x02\x01\x00"):
        with pytest.raises(PeerError):
            public.verify(junk, b"message")
    if kind != "ed25519":
        (tmp_path / "key").write_bytes(pem)
        (tmp_path / "message").write_bytes(b"message")
        public.verify(openssl("dgst", "-sha256", "-sign", tmp_path / "key", tmp_path / "message"), b"message")
    if kind == "p384":  # sigstore hashes with the curve's size
        public.verify(openssl("dgst", "-sha384", "-sign", tmp_path / "key", tmp_path / "message"), b"message")


def test_a_generated_key_survives_the_round_trip() -> None:
    key = SigningKey.generate()
    again = SigningKey.from_pem(key.to_pem())
    assert again.public.key_id == key.public.key_id
    assert PublicKey.from_pem(key.public.to_pem()).verify(again.sign(b"m"), b"m") == b"m"
    assert len(key.public.key_id) == 64


@pytest.mark.parametrize(
    "command",
    [["genrsa", "1024"], ["ecparam", "-genkey", "-name", "secp521r1", "-noout"], ["genpkey", "-algorithm", "x25519"]],
)
def test_weak_and_unknown_keys_are_refused(command: list[str]) -> None:
    pem = openssl(*command)
    with pytest.raises(PeerError) as caught:
        PublicKey.from_pem(openssl("pkey", "-pubout", data=pem))
    assert caught.value.code == "malformed"
    with pytest.raises(UsageError):
        SigningKey.from_pem(Secret(pem))


@pytest.mark.parametrize("pem", [b"", b"junk", b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", b"\xff" * 100])
def test_what_is_not_a_key_is_refused(pem: bytes) -> None:
    with pytest.raises(PeerError):
        PublicKey.from_pem(pem)
    with pytest.raises(UsageError):
        SigningKey.from_pem(Secret(pem))


def test_an_encrypted_key_is_said_to_be_one() -> None:
    pem = openssl("genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048", "-aes256", "-pass", "pass:x")
    with pytest.raises(UsageError, match="unencrypted"):
        SigningKey.from_pem(Secret(pem))
