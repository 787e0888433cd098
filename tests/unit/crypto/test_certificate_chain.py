"""Chains of token signers: what leads to an anchor, and what must not."""

from __future__ import annotations

import datetime
import itertools
from collections.abc import Callable
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import dsa, ec, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding

from enclave_cc.crypto import certificate_chain
from enclave_cc.crypto.certificate_chain import find_signer, read_key
from enclave_cc.crypto.jws import VerifyKey
from enclave_cc.errors import PeerError

NOW = 1_800_000_000
DAY = 86400


class Party:
    def __init__(self, name: str, issuer: Party | None = None, *, key: Any = None, **options: Any) -> None:
        self.key = key or ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        by = issuer or self
        start, end = (datetime.datetime.fromtimestamp(NOW + days * DAY, datetime.UTC) for days in options.get("valid", (-10, 10)))
        builder = x509.CertificateBuilder(
            by.name, self.name, self.key.public_key(), x509.random_serial_number(), start, end
        ).add_extension(x509.BasicConstraints(options.get("ca", True), options.get("length")), critical=True)
        for extension in options.get("extensions", ()):
            builder = builder.add_extension(extension, critical=True)
        self.der = builder.sign(by.key, SHA256()).public_bytes(Encoding.DER)


@pytest.fixture(scope="module")
def root() -> Party:
    return Party("root", key=rsa.generate_private_key(65537, 2048))


def judge(chain: list[Party], *anchors: Party, at: float = NOW) -> VerifyKey:
    return find_signer([party.der for party in chain], [party.der for party in anchors], at)


def test_chains_that_lead_to_an_anchor(root: Party) -> None:
    middle = Party("middle", root)
    lower = Party("lower", middle, key=ec.generate_private_key(ec.SECP384R1()))
    leaf = Party("leaf", lower, ca=False)
    expected = VerifyKey.wrap(leaf.key.public_key()).kid
    for others in itertools.permutations((middle, lower, root)):
        assert judge([leaf, *others], root).kid == expected
    assert judge([leaf, lower], middle).kid == expected
    assert judge([leaf, lower, middle], root).kid == expected
    assert judge([leaf], leaf).kid == expected  # listed itself
    own = Party("own")
    assert judge([own], root, own).kid == read_key(own.der).kid


def test_chains_that_do_not(root: Party) -> None:
    middle = Party("middle", root)
    leaf = Party("leaf", middle, ca=False)
    usage = x509.KeyUsage(*(True, *[False] * 8))
    unknown = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"")
    stranger = Party("root")
    for chain, anchors in (
        ([leaf], (root,)),  # a part is missing
        ([leaf, middle], ()),
        ([leaf, middle], (stranger,)),  # the name alone
        ([Party("below", leaf, ca=False), leaf, middle], (root,)),  # issued by no authority
        ([Party("x", y := Party("y", root, extensions=(usage,)), ca=False), y], (root,)),
        ([Party("x", y := Party("y", root, extensions=(unknown,)), ca=False), y], (root,)),
        ([Party("x", root, ca=False, extensions=(unknown,))], (root,)),
        ([Party("x", y := Party("y", root, valid=(-10, -1)), ca=False), y], (root,)),
        ([Party("x", root, ca=False, valid=(1, 2))], (root,)),
        ([Party("x", z := Party("z", y := Party("y", root, length=0)), ca=False), z, y], (root,)),  # too deep for y
        ([Party("x", root, ca=False, key=ec.generate_private_key(ec.SECP384R1()))], (root,)),  # signs no tokens
        ([], (root,)),
        ([leaf] * 9, (leaf,)),
    ):
        with pytest.raises(PeerError) as refused:
            judge(chain, *anchors)
        assert refused.value.code == "unauthenticated"
    with pytest.raises(PeerError):
        find_signer([b"no certificate"], [root.der], NOW)
    with pytest.raises(PeerError):
        judge([leaf, middle], root, at=NOW + 11 * DAY)


def slow_rsa() -> rsa.RSAPrivateKey:
    """A key whose public exponent is as long as its modulus: verifying costs what signing does, fifty times as much."""
    usual = rsa.generate_private_key(65537, 2048).private_numbers()
    phi, d = (usual.p - 1) * (usual.q - 1), 65537
    public = rsa.RSAPublicNumbers(pow(d, -1, phi), usual.public_numbers.n)
    numbers = rsa.RSAPrivateNumbers(usual.p, usual.q, d, d % (usual.p - 1), d % (usual.q - 1), usual.iqmp, public)
    return numbers.private_key(unsafe_skip_rsa_key_validation=True)


@pytest.mark.parametrize(
    "make_key",
    [slow_rsa, lambda: dsa.generate_private_key(2048), lambda: ec.generate_private_key(ec.SECP256K1())],
    ids=["exponent", "dsa", "curve"],
)
def test_keys_that_only_cost_time_issue_nothing(root: Party, make_key: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Anybody may send a chain, and have each of its keys tried on each certificate."""
    middle = Party("middle", root, key=make_key())
    leaf = Party("leaf", middle, ca=False)
    tried = []
    real = certificate_chain._is_issued_by
    monkeypatch.setattr(certificate_chain, "_is_issued_by", lambda each, by: tried.append(by.subject) or real(each, by))
    with pytest.raises(PeerError):
        judge([leaf, middle], root)
    assert middle.name not in tried


def test_certificates_that_all_issued_each_other_cost_little(root: Party, monkeypatch: pytest.MonkeyPatch) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    ring = [Party("ring", key=key) for _ in range(8)]
    checks = []
    real = certificate_chain._is_issued_by
    monkeypatch.setattr(certificate_chain, "_is_issued_by", lambda *pair: checks.append(pair) or real(*pair))
    with pytest.raises(PeerError):
        judge(ring, root)
    assert len(checks) <= 64  # all orders of eight would be 40,320
