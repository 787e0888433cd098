"""Certificates and CRLs: issued here, checked here, and Intel's real ones."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from enclave_cc.crypto.ecdsa import SigningKey
from enclave_cc.crypto.x509 import Certificate, RevocationList, Subject, issue_certificate, issue_crl
from enclave_cc.errors import PeerError
from enclave_cc.wire.sgx.certification import parse_pem_certificates
from enclave_cc.wire.sgx.collateral import Collateral

VECTORS = Path(__file__).parents[2] / "vectors/sgx"
ROOT = Subject(common_name="Root", organization="Test", serial=1, not_before=1000, not_after=2000, path_length=1)
LEAF = Subject(common_name="Leaf", organization="Test", serial=2, not_before=1100, not_after=1900)
CODE = "quote-refused"


class Pair:
    """A root and a leaf of it."""

    def __init__(self) -> None:
        self.root_key, self.leaf_key = SigningKey.generate(), SigningKey.generate()
        self.root = Certificate.parse(issue_certificate(ROOT, self.root_key.public, issuer=None, issuer_key=self.root_key))
        self.leaf = Certificate.parse(issue_certificate(LEAF, self.leaf_key.public, issuer=self.root, issuer_key=self.root_key))


@pytest.fixture(scope="module")
def pair() -> Pair:
    return Pair()


def test_what_is_issued_reads_back(pair: Pair) -> None:
    assert (pair.leaf.common_name, pair.leaf.serial, pair.leaf.not_before, pair.leaf.not_after) == ("Leaf", 2, 1100, 1900)
    assert pair.leaf.public_key == pair.leaf_key.public
    assert pair.root.authority
    assert not pair.leaf.authority
    assert pair.leaf.check_issued_by(pair.root, 1500, code=CODE) is pair.leaf


@pytest.mark.parametrize(("at", "valid"), [(1099, False), (1100, True), (1900, True), (1901, False)])
def test_validity_ends_are_inclusive(pair: Pair, at: int, valid: bool) -> None:
    if valid:
        pair.leaf.check_issued_by(pair.root, at, code=CODE)
        return
    with pytest.raises(PeerError, match="not valid at that time") as caught:
        pair.leaf.check_issued_by(pair.root, at, code=CODE)
    assert caught.value.code == CODE


def test_a_root_of_the_same_name_did_not_issue_it(pair: Pair) -> None:
    with pytest.raises(PeerError, match="not issued by"):
        pair.leaf.check_issued_by(Pair().root, 1500, code=CODE)


def test_a_leaf_issues_nothing(pair: Pair) -> None:
    forged = Certificate.parse(
        issue_certificate(replace(LEAF, common_name="Forged"), pair.leaf_key.public, issuer=pair.leaf, issuer_key=pair.leaf_key)
    )
    with pytest.raises(PeerError, match="may not issue"):
        forged.check_issued_by(pair.leaf, 1500, code=CODE)


def test_crls(pair: Pair) -> None:
    der = issue_crl(pair.root, pair.root_key, number=1, this_update=1400, next_update=1600, revoked=(2, 7))
    crl = RevocationList.parse(der).check_issued_by(pair.root, 1500, code=CODE)
    assert crl.names(pair.leaf)
    assert not crl.names(pair.root)
    for at in (1399, 1601):
        with pytest.raises(PeerError, match="not valid at that time"):
            crl.check_issued_by(pair.root, at, code=CODE)
    for other in (Pair().root, pair.leaf):
        with pytest.raises(PeerError, match="not issued by"):
            crl.check_issued_by(other, 1500, code=CODE)


def test_intel_s_own(pair: Pair) -> None:
    collateral = Collateral.parse((VECTORS / "phala-collateral.json").read_bytes())
    ca, root = map(Certificate.parse, parse_pem_certificates(collateral.pck_crl_issuer_chain.encode()))
    assert (ca.common_name, root.common_name) == ("Intel SGX PCK Processor CA", "Intel SGX Root CA")
    at = 1751000000
    ca.check_issued_by(root, at, code=CODE)
    root.check_issued_by(root, at, code=CODE)
    RevocationList.parse(collateral.pck_crl).check_issued_by(ca, at, code=CODE)
    RevocationList.parse(collateral.root_ca_crl).check_issued_by(root, at, code=CODE)


@pytest.mark.parametrize("data", [b"", b"\x30\x00", b"\x30\x82" + bytes(500), bytes(70_000)])
def test_garbage(data: bytes) -> None:
    for parse in (Certificate.parse, RevocationList.parse):
        with pytest.raises(PeerError) as caught:
            parse(data)
        assert caught.value.code == "malformed"
