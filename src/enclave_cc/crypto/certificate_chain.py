"""Certificate chains of signers of tokens (RFC 5280 section 6, the part that a `x5c` needs), on any usual kind of key.

`crypto.x509` is for SGX, where a chain has one form. Here issuers are whoever the owner lists, so the chain is found
among what the token brings along, in whatever order.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from enclave_cc.crypto.jws import VerifyKey
from enclave_cc.crypto.x509 import UNREADABLE
from enclave_cc.errors import PeerError, UsageError

MAX_CERTIFICATES = 8
# What issuers use, and cheap to verify by: anybody may send a chain.
_CURVES = ("secp256r1", "secp384r1", "secp521r1")
_RSA_BITS, _MAX_EXPONENT = range(2048, 8193), 1 << 32
_REFUSED = "unauthenticated"


def find_signer(chain: Sequence[bytes], anchors: Sequence[bytes], at: float) -> VerifyKey:
    """The key of `chain`'s first certificate (DER), if it leads to one of `anchors` at the time `at` (Unix seconds).

    1. There are 1 to `MAX_CERTIFICATES` certificates, and all can be read.
    2. The first is an anchor itself; or one of the others or of the anchors issued it: that one may issue
       certificates, its key is of a usual kind, its name and signature fit, its path length is kept, and so on up to an
       anchor.
    3. Each certificate on the way is valid at `at`.
    4. The first certificate's key is of a kind that signs tokens.

    Raises `PeerError("unauthenticated")`.
    """
    # 1
    if not 1 <= len(chain) <= MAX_CERTIFICATES:
        raise PeerError(_REFUSED, "the token's certificate chain is empty or too long")
    leaf, *others = (_parse(der) for der in chain)
    trusted = [_parse(der) for der in anchors]
    # 2, 3
    if not _leads_to_anchor(leaf, others, trusted, datetime.datetime.fromtimestamp(at, datetime.UTC)):
        raise PeerError(_REFUSED, "the token's certificates lead to nobody whom the owner lists")
    # 4
    try:
        return VerifyKey.wrap(leaf.public_key())
    except (UsageError, *UNREADABLE) as error:
        raise PeerError(_REFUSED, "the token's certificate has a key that signs no tokens") from error


def read_key(der: bytes) -> VerifyKey:
    """The key of one certificate of our own configuration. Raises `UsageError("bad-config")`."""
    try:
        return VerifyKey.wrap(x509.load_der_x509_certificate(der).public_key())
    except UNREADABLE as error:
        raise UsageError("bad-config", "a certificate cannot be read") from error


def _parse(der: bytes) -> x509.Certificate:
    try:
        parsed = x509.load_der_x509_certificate(der)
        _ = parsed.extensions  # read lazily: a broken one would raise later
    except UNREADABLE as error:
        raise PeerError(_REFUSED, "a certificate of the token cannot be read") from error
    return parsed


def _leads_to_anchor(
    leaf: x509.Certificate, others: list[x509.Certificate], anchors: list[x509.Certificate], at: datetime.datetime
) -> bool:
    """Breadth first, each certificate once: a chain of certificates that all issued each other costs n² checks, not n!."""
    if not _understood(leaf):
        return False
    level, left, below = [leaf], [*others], 0
    while level:
        level = [each for each in level if each.not_valid_before_utc <= at <= each.not_valid_after_utc]
        if any(each in anchors for each in level):
            return True
        issuers = [
            issuer
            for issuer in [*anchors, *left]
            if _may_issue(issuer, below=below) and any(_is_issued_by(each, issuer) for each in level)
        ]
        left = [other for other in left if other not in issuers]
        level, below = issuers, below + 1
    return False


def _understood(certificate: x509.Certificate) -> bool:
    """RFC 5280 4.2: an extension that is critical and not understood refuses the certificate."""
    known = (x509.BasicConstraints, x509.KeyUsage)
    return all(isinstance(each.value, known) or not each.critical for each in certificate.extensions)


def _may_issue(issuer: x509.Certificate, *, below: int) -> bool:
    """Whether `issuer` is an authority that allows `below` more authorities under it."""
    values = [extension.value for extension in issuer.extensions]
    constraints = next((value for value in values if isinstance(value, x509.BasicConstraints)), None)
    usage = next((value for value in values if isinstance(value, x509.KeyUsage)), None)
    if constraints is None or not constraints.ca or (usage is not None and not usage.key_cert_sign):
        return False
    if constraints.path_length is not None and below > constraints.path_length:
        return False
    return _understood(issuer) and _is_usual(issuer)


def _is_usual(issuer: x509.Certificate) -> bool:
    """Whether its key is of a kind that issues certificates, and no burden."""
    try:
        key = issuer.public_key()
    except UNREADABLE:
        return False
    if isinstance(key, rsa.RSAPublicKey):
        return key.key_size in _RSA_BITS and key.public_numbers().e < _MAX_EXPONENT
    if isinstance(key, ec.EllipticCurvePublicKey):
        return key.curve.name in _CURVES
    return isinstance(key, ed25519.Ed25519PublicKey)


def _is_issued_by(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (*UNREADABLE, InvalidSignature):
        return False
    return True
