"""Answers of PCS and PCCS: signed documents, CRLs, issuer chains."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

from enclave_cc.errors import PeerError
from enclave_cc.wire.sgx import pcs
from enclave_cc.wire.sgx.collateral import Collateral

VECTORS = Path(__file__).parents[2] / "vectors/sgx"
PARSED = Collateral.parse((VECTORS / "phala-collateral.json").read_bytes())
SEEDS = [
    f'{{"tcbInfo":{PARSED.tcb_info},"signature":"{PARSED.tcb_info_signature.hex()}"}}'.encode(),
    f'{{"enclaveIdentity":{PARSED.qe_identity},"signature":"{PARSED.qe_identity_signature.hex()}"}}'.encode(),
    PARSED.pck_crl,
    PARSED.pck_crl.hex().encode(),
    quote(PARSED.pck_crl_issuer_chain).encode(),
]


def target(data: bytes) -> None:
    for parse in (
        lambda: pcs.parse_signed_document(data, "tcbInfo"),
        lambda: pcs.parse_signed_document(data, "enclaveIdentity"),
        lambda: pcs.parse_crl(data),
        lambda: pcs.parse_issuer_chain(data.decode("latin-1")),
    ):
        with suppress(PeerError):
            parse()
