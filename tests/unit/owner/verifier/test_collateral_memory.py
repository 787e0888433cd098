"""`CollateralVerifier` remembers: it must judge as `verify_collateral` does, at every time and for every document."""

from __future__ import annotations

import pytest

from enclave_cc.errors import PeerError
from enclave_cc.owner.verifier import collateral as module
from enclave_cc.owner.verifier.collateral import CollateralVerifier
from enclave_cc.owner.verifier.quote import verify_quote
from enclave_cc.simulator.platform import Condition

from .conftest import NOW, Simulated

DAY = 24 * 3600


def judge(simulated: Simulated, memory: CollateralVerifier | None, condition: Condition | None, at: int) -> object:
    collateral = simulated.collateral(condition)
    try:
        return verify_quote(simulated.quote(), collateral, roots=[simulated.root], at=at, collaterals=memory).tcb_status
    except PeerError as error:
        return error.code, error.what


@pytest.mark.parametrize("days", [-4000, -31, -1, 0, 1, 29, 31, 400, 12000])
def test_as_without_memory_at_every_time(simulated: Simulated, days: int) -> None:
    memory = CollateralVerifier()
    assert judge(simulated, memory, None, NOW) == "UpToDate"
    at = NOW + days * DAY
    assert judge(simulated, memory, None, at) == judge(simulated, None, None, at)
    assert judge(simulated, memory, None, NOW) == "UpToDate"


def test_other_documents_are_judged_anew(simulated: Simulated) -> None:
    memory = CollateralVerifier()
    assert judge(simulated, memory, None, NOW) == "UpToDate"
    for condition in (Condition(tcb_status="OutOfDate"), Condition(pck_revoked=True)):
        found = judge(simulated, memory, condition, NOW)
        assert found == judge(simulated, None, condition, NOW) != "UpToDate"


def test_as_without_memory_at_the_window_s_edges(simulated: Simulated) -> None:
    memory = CollateralVerifier()
    assert judge(simulated, memory, None, NOW) == "UpToDate"
    (known,) = memory._verified.values()
    for edge in (known.start, known.end):
        for at in (edge - 1, edge, edge + 1):
            assert judge(simulated, memory, None, at) == judge(simulated, None, None, at)


def test_verified_once(simulated: Simulated, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    real = module.verify_collateral
    monkeypatch.setattr(module, "verify_collateral", lambda *a, **k: calls.append(1) or real(*a, **k))
    memory, collateral = CollateralVerifier(), simulated.collateral()
    for _ in range(3):
        verify_quote(simulated.quote(), collateral, roots=[simulated.root], at=NOW, collaterals=memory)
    assert len(calls) == 1
