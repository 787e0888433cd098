"""X.509 certificates and CRLs (RFC 5280) on P-256, as far as SGX collateral needs them: reading, checking, issuing.

Heavy to import (40 ms), so callers on a start-up path defer it.
"""

from __future__ import annotations

import datetime
import functools
import warnings

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from enclave_cc.crypto.ecdsa import SigningKey
from enclave_cc.errors import PeerError
from enclave_cc.record import record

CERTIFICATE_LIMIT = 64 << 10
CRL_LIMIT = 16 << 20

# A name that breaks RFC 5280 makes `cryptography` warn and go on. We refuse it: such a certificate is nobody's honest
# work, and a peer shall not write to our stderr.
warnings.filterwarnings("error", message="Attribute's length must be", category=UserWarning)

# What `cryptography` raises for bytes that are no certificate or CRL; not all of them are ValueErrors.
UNREADABLE = (
    ValueError,
    UserWarning,
    TypeError,
    UnsupportedAlgorithm,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)


@record
class Certificate:
    """A parsed certificate with a P-256 key; nothing in it is verified until `check_issued_by`."""

    der: bytes
    common_name: str
    public_key: bytes  # x‖y, 64 bytes
    serial: int
    not_before: int  # seconds since 1970, inclusive
    not_after: int  # inclusive
    authority: bool  # basic constraints: may issue certificates
    parsed: x509.Certificate

    @classmethod
    def parse(cls, der: bytes) -> Certificate:
        """Raises `PeerError("malformed")` unless `der` is one certificate on P-256."""
        if len(der) > CERTIFICATE_LIMIT:
            raise PeerError("malformed", f"a certificate has at most {CERTIFICATE_LIMIT} bytes")
        try:
            parsed = x509.load_der_x509_certificate(der)
            key = parsed.public_key()
            names = parsed.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
            constraints = [e.value for e in parsed.extensions if isinstance(e.value, x509.BasicConstraints)]
            if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
                raise PeerError("malformed", "a certificate's key is not on P-256")
            return cls(
                der=der,
                common_name=str(names[0].value) if names else "",
                public_key=_public_bytes(key),
                serial=parsed.serial_number,
                not_before=_seconds(parsed.not_valid_before_utc),
                not_after=_seconds(parsed.not_valid_after_utc),
                authority=bool(constraints and constraints[0].ca),
                parsed=parsed,
            )
        except UNREADABLE as error:
            raise PeerError("malformed", "a certificate cannot be read") from error

    def check_issued_by(self, issuer: Certificate, at: int, *, code: str) -> Certificate:
        """Itself. Raises `PeerError(code)`.

        1. `issuer` may issue certificates
        2. the issuer's name and signature fit
        3. `at` lies within the validity of both
        """
        # 1
        if not issuer.authority:
            raise PeerError(code, f"{issuer.common_name!r} may not issue certificates")
        # 2
        try:
            _check_signature(self.parsed, issuer.parsed)
        except (*UNREADABLE, InvalidSignature) as error:
            raise PeerError(code, f"the certificate of {self.common_name!r} is not issued by {issuer.common_name!r}") from error
        # 3
        for certificate in (issuer, self):
            certificate.check_valid(at, code=code)
        return self

    def check_valid(self, at: int, *, code: str) -> None:
        if not self.not_before <= at <= self.not_after:
            raise PeerError(code, f"the certificate of {self.common_name!r} is not valid at that time")


@functools.lru_cache(256)
def _check_signature(certificate: x509.Certificate, issuer: x509.Certificate) -> None:
    """Raises; that it did not is remembered: neither name nor signature changes."""
    certificate.verify_directly_issued_by(issuer)


@record
class RevocationList:
    """A parsed CRL; nothing in it is verified until `check_issued_by`."""

    this_update: int
    next_update: int
    parsed: x509.CertificateRevocationList

    @classmethod
    def parse(cls, der: bytes) -> RevocationList:
        """Raises `PeerError("malformed")` unless `der` is one CRL with a next update."""
        if len(der) > CRL_LIMIT:
            raise PeerError("malformed", f"a CRL has at most {CRL_LIMIT} bytes")
        try:
            parsed = x509.load_der_x509_crl(der)
            if parsed.next_update_utc is None:
                raise PeerError("malformed", "a CRL does not say when it expires")
            return cls(_seconds(parsed.last_update_utc), _seconds(parsed.next_update_utc), parsed)
        except UNREADABLE as error:
            raise PeerError("malformed", "a CRL cannot be read") from error

    def check_issued_by(self, issuer: Certificate, at: int, *, code: str) -> RevocationList:
        """Itself. Raises `PeerError(code)`.

        1. the issuer's name and signature fit
        2. `at` lies within the list's validity
        """
        # 1
        try:
            valid = self.parsed.is_signature_valid(_public_key(issuer)) and self.parsed.issuer == issuer.parsed.subject
        except UNREADABLE:
            valid = False
        if not valid:
            raise PeerError(code, f"the CRL is not issued by {issuer.common_name!r}")
        # 2
        if not self.this_update <= at <= self.next_update:
            raise PeerError(code, f"the CRL of {issuer.common_name!r} is not valid at that time")
        return self

    def names(self, certificate: Certificate) -> bool:
        """Whether the list revokes the certificate (which must be of the list's issuer)."""
        return self.parsed.get_revoked_certificate_by_serial_number(certificate.serial) is not None


@record(kw_only=True)
class Subject:
    """What a new certificate says; times in seconds since 1970."""

    common_name: str
    organization: str
    serial: int
    not_before: int
    not_after: int
    path_length: int | None = None  # of an authority; None: an end entity
    extensions: tuple[tuple[str, bytes], ...] = ()  # dotted OID, DER; not critical


def issue_certificate(subject: Subject, public: bytes, *, issuer: Certificate | None, issuer_key: SigningKey) -> bytes:
    """DER of a certificate for the key `public` (x‖y), by `issuer`, or self-signed if there is none."""
    name = x509.Name(
        [
            x509.NameAttribute(x509.NameOID.COMMON_NAME, subject.common_name),
            x509.NameAttribute(x509.NameOID.ORGANIZATION_NAME, subject.organization),
        ]
    )
    authority = subject.path_length is not None
    key = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), b"\x04" + public)
    issuer_public = issuer_key.reveal().public_key()
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(issuer.parsed.subject if issuer else name)
        .public_key(key)
        .serial_number(subject.serial)
        .not_valid_before(_datetime(subject.not_before))
        .not_valid_after(_datetime(subject.not_after))
        .add_extension(x509.BasicConstraints(ca=authority, path_length=subject.path_length), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_public), critical=False)
        .add_extension(_key_usage(authority), critical=True)
    )
    for oid, der in subject.extensions:
        builder = builder.add_extension(x509.UnrecognizedExtension(x509.ObjectIdentifier(oid), der), critical=False)
    return builder.sign(issuer_key.reveal(), hashes.SHA256()).public_bytes(serialization.Encoding.DER)


def issue_crl(
    issuer: Certificate, issuer_key: SigningKey, *, number: int, this_update: int, next_update: int, revoked: tuple[int, ...] = ()
) -> bytes:
    """DER of a CRL that revokes the serial numbers `revoked`."""
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(issuer.parsed.subject)
        .last_update(_datetime(this_update))
        .next_update(_datetime(next_update))
        .add_extension(x509.CRLNumber(number), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.reveal().public_key()), critical=False)
    )
    for serial in revoked:
        builder = builder.add_revoked_certificate(
            x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(_datetime(this_update)).build()
        )
    return builder.sign(issuer_key.reveal(), hashes.SHA256()).public_bytes(serialization.Encoding.DER)


def _key_usage(authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=authority,
        crl_sign=authority,
        encipher_only=False,
        decipher_only=False,
    )


def _public_bytes(key: ec.EllipticCurvePublicKey) -> bytes:
    return key.public_bytes(serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint)[1:]


def _public_key(certificate: Certificate) -> ec.EllipticCurvePublicKey:
    return ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), b"\x04" + certificate.public_key)


def _seconds(moment: datetime.datetime) -> int:
    return int(moment.timestamp())


def _datetime(seconds: int) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC)
