"""Quotes, down to the certificates in them."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from enclave_cc.crypto.x509 import Certificate
from enclave_cc.errors import PeerError
from enclave_cc.wire.sgx.quote import Quote

VECTORS = Path(__file__).parents[2] / "vectors/sgx"
SEEDS = [(VECTORS / name).read_bytes() for name in ("phala-quote.bin", "trustee-debug-quote.bin")]


def target(data: bytes) -> None:
    with suppress(PeerError):
        quote = Quote.parse(data)
        assert quote.encode() == data
        for der in quote.certification.certificates():
            Certificate.parse(der)
