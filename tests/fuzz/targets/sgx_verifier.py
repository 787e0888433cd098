"""The verifier accepts one quote: the real one, as it is."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from enclave_cc.errors import PeerError
from enclave_cc.owner.verifier.quote import read_origin, verify_quote
from enclave_cc.owner.verifier.roots import intel_root
from enclave_cc.wire.sgx.collateral import Collateral

VECTORS = Path(__file__).parents[2] / "vectors/sgx"
QUOTE = (VECTORS / "phala-quote.bin").read_bytes()
COLLATERAL = Collateral.parse((VECTORS / "phala-collateral.json").read_bytes())
ROOTS = [intel_root()]
SEEDS = [QUOTE, (VECTORS / "trustee-debug-quote.bin").read_bytes()]


def target(data: bytes) -> None:
    with suppress(PeerError):
        read_origin(data)
    with suppress(PeerError):
        verify_quote(data, COLLATERAL, roots=ROOTS, at=1751000000)
        assert data == QUOTE
