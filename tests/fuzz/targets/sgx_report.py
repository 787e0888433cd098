"""Report body, REPORT, TARGETINFO and KEYREQUEST."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from enclave_cc.errors import PeerError
from enclave_cc.wire.sgx.report import KeyRequest, Report, ReportBody, TargetInfo

VECTORS = Path(__file__).parents[2] / "vectors/sgx"
BODY = (VECTORS / "phala-quote.bin").read_bytes()[48:432]
SEEDS = [BODY, BODY + bytes(48), TargetInfo.of(ReportBody.parse(BODY)).encode(), KeyRequest(key_name=4).encode()]


def target(data: bytes) -> None:
    for kind in (ReportBody, Report, TargetInfo, KeyRequest):
        with suppress(PeerError):
            assert kind.parse(data).encode() == data
