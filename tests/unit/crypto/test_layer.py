"""ocicrypt's layer cipher against its definition."""

from __future__ import annotations

import hashlib
import hmac
import os

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from enclave_cc.crypto.layer import LayerCipher, LayerEncrypter
from enclave_cc.crypto.secret import Secret
from enclave_cc.errors import PeerError

# NIST SP 800-38A, F.5.5 (CTR-AES256.Encrypt)
KEY = bytes.fromhex("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4")
COUNTER = bytes.fromhex("f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff")
PLAIN = bytes.fromhex("6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e51")
CIPHERTEXT = bytes.fromhex("601ec313775789a5b7a7f504bbf3d228f443e3ca4d62b59aca84e990cacaf5c5")


def test_known_answer() -> None:
    mac = hmac.digest(KEY, CIPHERTEXT, hashlib.sha256)
    cipher = LayerCipher(Secret(KEY), COUNTER, mac)
    assert cipher.update(CIPHERTEXT[:5]) + cipher.update(CIPHERTEXT[5:]) == PLAIN
    cipher.verify()


def test_the_counter_wraps_as_a_128_bit_number() -> None:
    key, nonce = os.urandom(32), b"\xff" * 16
    block = Cipher(algorithms.AES(key), modes.ECB()).encryptor()
    stream = block.update(nonce) + block.update(bytes(16))
    assert LayerCipher(Secret(key), nonce, bytes(32)).update(bytes(32)) == stream


@pytest.mark.parametrize("at", [0, 500, 999])
def test_a_changed_byte_is_noticed(at: int) -> None:
    key, ciphertext = os.urandom(32), bytearray(os.urandom(1000))
    mac = hmac.digest(key, bytes(ciphertext), hashlib.sha256)
    ciphertext[at] ^= 1
    cipher = LayerCipher(Secret(key), bytes(16), mac)
    cipher.update(ciphertext)
    with pytest.raises(PeerError) as caught:
        cipher.verify()
    assert caught.value.code == "layer-broken"


def test_skipped_bytes_are_covered() -> None:
    key, ciphertext = os.urandom(32), os.urandom(1000)
    cipher = LayerCipher(Secret(key), bytes(16), hmac.digest(key, ciphertext, hashlib.sha256))
    cipher.update(ciphertext[:10])
    cipher.skip(ciphertext[10:])
    cipher.verify()


@pytest.mark.parametrize(("key", "nonce", "mac"), [(31, 16, 32), (16, 16, 32), (32, 12, 32), (32, 16, 31), (0, 0, 0)])
def test_wrong_sizes(key: int, nonce: int, mac: int) -> None:
    with pytest.raises(PeerError) as caught:
        LayerCipher(Secret(bytes(key)), bytes(nonce), bytes(mac))
    assert caught.value.code == "layer-broken"


def test_what_was_encrypted_is_decrypted() -> None:
    plain = os.urandom(100_000)
    encrypter = LayerEncrypter()
    ciphertext = encrypter.update(plain[:7]) + encrypter.update(plain[7:])
    mac = encrypter.finish()
    assert mac == hmac.digest(encrypter.symkey.reveal(), ciphertext, hashlib.sha256)
    cipher = LayerCipher(encrypter.symkey, encrypter.nonce, mac)
    assert cipher.update(ciphertext) == plain
    cipher.verify()
    assert LayerEncrypter().symkey != encrypter.symkey and LayerEncrypter().nonce != encrypter.nonce
