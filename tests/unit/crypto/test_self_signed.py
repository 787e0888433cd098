from __future__ import annotations

import datetime
import ipaddress

import pytest
from cryptography import x509

from enclave_cc.crypto.jws import SigningKey
from enclave_cc.crypto.self_signed import make_certificate
from enclave_cc.errors import UsageError


def test_certificate_says_what_was_asked() -> None:
    pem = make_certificate(
        SigningKey.generate("ES256").to_pem(),
        common_name="enclave-cc KBS",
        hosts=["kbs.example", "127.0.0.1", "::1"],
        not_before=1_700_000_000,
        not_after=1_800_000_000,
    )
    certificate = x509.load_pem_x509_certificate(pem)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["kbs.example"]
    assert names.get_values_for_type(x509.IPAddress) == [ipaddress.ip_address("127.0.0.1"), ipaddress.ip_address("::1")]
    assert certificate.not_valid_after_utc == datetime.datetime.fromtimestamp(1_800_000_000, datetime.UTC)
    certificate.verify_directly_issued_by(certificate)


def test_unusable_arguments() -> None:
    with pytest.raises(UsageError):
        make_certificate(SigningKey.generate("EdDSA").to_pem(), common_name="x", hosts=[], not_before=1, not_after=2)
    with pytest.raises(UsageError):
        make_certificate(
            SigningKey.generate("ES256").to_pem(), common_name="x", hosts=["bücher.example"], not_before=1, not_after=2
        )
