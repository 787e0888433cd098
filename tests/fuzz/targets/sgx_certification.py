"""Certification data and certificate chains."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from enclave_cc.errors import PeerError
from enclave_cc.wire.sgx.certification import CertificationData, parse_pem_certificates
from enclave_cc.wire.sgx.quote import Quote

VECTORS = Path(__file__).parents[2] / "vectors/sgx"
CERTIFICATION = Quote.parse((VECTORS / "phala-quote.bin").read_bytes()).certification
SEEDS = [CERTIFICATION.encode(), CERTIFICATION.data, CertificationData(1, bytes(36)).encode()]


def target(data: bytes) -> None:
    with suppress(PeerError):
        parse_pem_certificates(data)
    with suppress(PeerError):
        certification = CertificationData.parse(data)
        assert certification.encode() == data
        certification.certificates()
