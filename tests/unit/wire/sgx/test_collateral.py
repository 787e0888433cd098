"""Collateral: QuoteCollateralV3 JSON, TCB info and QE identity."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from enclave_cc.errors import PeerError
from enclave_cc.wire.sgx.collateral import Collateral, QeIdentity, TcbInfo, format_moment

VECTORS = Path(__file__).parents[3] / "vectors/sgx"
REAL = [VECTORS / "phala-collateral.json", VECTORS / "intel-00606A000000-collateral.json"]


@pytest.mark.parametrize("path", REAL, ids=lambda path: path.stem)
def test_real_collateral_round_trips(path: Path) -> None:
    collateral = Collateral.parse(path.read_bytes())
    assert Collateral.parse(collateral.encode()) == collateral
    ours, theirs = json.loads(collateral.encode()), json.loads(path.read_bytes())
    assert ours == {name: theirs[name] for name in ours}


def test_a_real_tcb_info_round_trips_to_the_signed_bytes() -> None:
    text = Collateral.parse(REAL[0].read_bytes()).tcb_info
    info = TcbInfo.parse(text)
    assert info.fmspc.hex() == "00a067110000"
    assert (info.issue_date, info.evaluation_number) == (1750330571, 17)
    assert info.encode() == text


def test_a_real_qe_identity() -> None:
    identity = QeIdentity.parse(Collateral.parse(REAL[0].read_bytes()).qe_identity)
    assert identity.next_update == 1752919278
    assert identity.isv_prod_id == 1
    assert [(level.isv_svn, level.status) for level in identity.levels][:2] == [(8, "UpToDate"), (6, "OutOfDate")]
    found = [identity.find_level(svn) for svn in (9, 8, 7, 0)]
    assert [level.status if level else None for level in found] == ["UpToDate", "UpToDate", "OutOfDate", None]


def test_levels_are_tried_in_order() -> None:
    info = TcbInfo.parse(Collateral.parse(REAL[0].read_bytes()).tcb_info)
    best = info.levels[0]
    assert info.find_level(bytes(best.components), best.pce_svn) == best
    assert info.find_level(bytes(best.components), best.pce_svn - 1) != best
    assert info.find_level(bytes(16), 0) is None


def test_tdx_documents_are_of_the_wrong_platform() -> None:
    tcb_info = (VECTORS / "intel-tdx-tcb-info.json").read_text().split('{"tcbInfo":', 1)[1].rsplit(',"signature"', 1)[0]
    identity = (VECTORS / "intel-tdx-qe-identity.json").read_text().split('{"enclaveIdentity":', 1)[1].rsplit(',"signature"', 1)[0]
    for parse, text in ((TcbInfo.parse, tcb_info), (QeIdentity.parse, identity)):
        with pytest.raises(PeerError) as caught:
            parse(text)
        assert caught.value.code == "collateral-refused"


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"id": "TDX"},
        {"issueDate": "2025-02-30T00:00:00Z"},
        {"issueDate": "2025-02-03 00:00:00"},
        {"nextUpdate": 5},
        {"fmspc": "00"},
        {"fmspc": "zz" * 6},
        {"pceId": None},
        {"tcbEvaluationDataNumber": -1},
        {"tcbEvaluationDataNumber": True},
        {"tcbLevels": []},
        {"tcbLevels": [1]},
        {"tcbLevels": [{"tcb": {"sgxtcbcomponents": [{"svn": 1}] * 15, "pcesvn": 1}, "tcbDate": "", "tcbStatus": "UpToDate"}]},
        {"tcbLevels": [{"tcb": {"sgxtcbcomponents": [1] * 16, "pcesvn": 1}, "tcbDate": "", "tcbStatus": "UpToDate"}]},
        {"tcbLevels": [{"tcb": {"sgxtcbcomponents": [{"svn": 1}] * 16, "pcesvn": 1}, "tcbDate": "", "tcbStatus": "Fine"}]},
    ],
)
def test_broken_tcb_info(change: dict[str, object]) -> None:
    document = json.loads(Collateral.parse(REAL[0].read_bytes()).tcb_info)
    with pytest.raises(PeerError) as caught:
        TcbInfo.parse(json.dumps({**document, **change}))
    assert caught.value.code in ("malformed", "collateral-refused")


@pytest.mark.parametrize("member", ["pck_crl", "tcb_info", "qe_identity_signature", "root_ca_crl"])
def test_collateral_with_a_member_missing_or_wrong(member: str) -> None:
    document = json.loads(REAL[0].read_bytes())
    for value in (None, 1, "xyz" if "crl" in member or "signature" in member else []):
        with pytest.raises(PeerError, match=member):
            Collateral.parse(json.dumps({**document, member: value}))
    del document[member]
    with pytest.raises(PeerError, match=member):
        Collateral.parse(json.dumps(document))


def test_moments() -> None:
    assert format_moment(1750330571) == "2025-06-19T10:56:11Z"


def test_written_identity_reads_back() -> None:
    identity = QeIdentity.parse(Collateral.parse(REAL[0].read_bytes()).qe_identity)
    newer = replace(identity, issue_date=identity.issue_date + 60)
    assert QeIdentity.parse(newer.encode(attributes=bytes(16), attributes_mask=bytes(16))) == newer
