"""SIGSTRUCT: layout, signature, and the quotients that microcode checks."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from enclave_cc.crypto import rsa3072
from enclave_cc.errors import PeerError
from enclave_cc.wire.sgx import sigstruct
from enclave_cc.wire.sgx.report import AttributeFlag
from enclave_cc.wire.sgx.sigstruct import SigStruct


@pytest.fixture(scope="module")
def key() -> rsa3072.SigningKey:
    return rsa3072.SigningKey.generate()


@pytest.fixture(scope="module")
def signed(key: rsa3072.SigningKey) -> SigStruct:
    return sigstruct.sign(key, mr_enclave=bytes(range(32)), isv_prod_id=0x1234, isv_svn=0x5678, date=20260131)


def test_layout_and_signature_by_another_reading(signed: SigStruct, key: rsa3072.SigningKey) -> None:
    data = signed.encode()
    assert len(data) == 1808
    assert data[0:16].hex() == "06000000e10000000000010000000000"
    assert data[20:24] == bytes.fromhex("31012620")  # BCD, little-endian
    assert data[24:40].hex() == "01010000600000006000000001000000"
    modulus, exponent, signature = (int.from_bytes(part, "little") for part in (data[128:512], data[512:516], data[516:900]))
    assert (modulus, exponent) == (key.modulus, 3)
    assert data[960:992] == bytes(range(32))
    assert data[1024:1028] == bytes.fromhex("34127856")
    rsa.RSAPublicNumbers(3, modulus).public_key().verify(
        signature.to_bytes(384, "big"), data[:128] + data[900:1028], padding.PKCS1v15(), hashes.SHA256()
    )
    q1, q2 = (int.from_bytes(part, "little") for part in (data[1040:1424], data[1424:1808]))
    assert q1 == signature**2 // modulus
    assert q2 == (signature**3 - q1 * signature * modulus) // modulus
    assert signed.mr_signer == hashlib.sha256(data[128:512]).digest()


def test_signing_is_reproducible(signed: SigStruct, key: rsa3072.SigningKey) -> None:
    again = rsa3072.SigningKey.from_pem(key.to_pem())
    assert sigstruct.sign(again, mr_enclave=bytes(range(32)), isv_prod_id=0x1234, isv_svn=0x5678, date=20260131) == signed


def test_round_trip(signed: SigStruct) -> None:
    assert SigStruct.parse(signed.encode()).verify() == signed


def test_debug_is_open_only_if_allowed(signed: SigStruct, key: rsa3072.SigningKey) -> None:
    assert signed.attribute_mask.flags & AttributeFlag.DEBUG
    debug = sigstruct.sign(key, mr_enclave=bytes(32), isv_prod_id=1, isv_svn=1, date=20260131, allow_debug=True)
    assert not debug.attribute_mask.flags & AttributeFlag.DEBUG


def test_any_changed_byte_is_refused(signed: SigStruct) -> None:
    data = bytearray(signed.encode())
    for offset in range(0, len(data), 1):
        data[offset] ^= 1 << offset % 8
        with pytest.raises(PeerError):
            SigStruct.parse(bytes(data)).verify()
        data[offset] ^= 1 << offset % 8


def test_another_signer_is_another_mr_signer(signed: SigStruct) -> None:
    other = sigstruct.sign(rsa3072.SigningKey.generate(), mr_enclave=bytes(32), isv_prod_id=1, isv_svn=1, date=20260131)
    assert other.verify().mr_signer != signed.mr_signer


def test_an_unsigned_one_does_not_verify(signed: SigStruct) -> None:
    with pytest.raises(PeerError):
        replace(signed, modulus=0, signature=0).verify()


@pytest.mark.parametrize("size", [0, 1807, 1809])
def test_sizes_are_exact(size: int) -> None:
    with pytest.raises(PeerError, match="1808"):
        SigStruct.parse(bytes(size))
