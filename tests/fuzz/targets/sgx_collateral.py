"""Collateral, TCB info, QE identity, and the DER in them."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from enclave_cc.crypto.x509 import RevocationList
from enclave_cc.errors import PeerError
from enclave_cc.wire.sgx.collateral import Collateral, QeIdentity, TcbInfo

VECTORS = Path(__file__).parents[2] / "vectors/sgx"
WHOLE = (VECTORS / "phala-collateral.json").read_bytes()
PARSED = Collateral.parse(WHOLE)
SEEDS = [WHOLE, PARSED.tcb_info.encode(), PARSED.qe_identity.encode(), PARSED.pck_crl, PARSED.root_ca_crl]


def target(data: bytes) -> None:
    text = data.decode("utf-8", "replace")
    for parse in (
        lambda: Collateral.parse(data),
        lambda: TcbInfo.parse(text),
        lambda: QeIdentity.parse(text),
        lambda: RevocationList.parse(data),
    ):
        with suppress(PeerError):
            parse()
