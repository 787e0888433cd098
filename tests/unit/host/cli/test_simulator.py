"""`enclave-cc simulator`."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from enclave_cc.__main__ import main
from enclave_cc.wire.sgx.collateral import Collateral, TcbInfo


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "sim"


def simulator(*words: object) -> int:
    return main(["simulator", *map(str, words)])


def test_init_is_safe_to_repeat_and_loud(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert simulator("init", "--state", state, "--json") == 0
    first = capsys.readouterr()
    assert "NOT Intel" in first.err
    assert json.loads(first.out)["made"] is True
    assert simulator("init", "--state", state, "--json") == 0
    again = json.loads(capsys.readouterr().out)
    assert again == {**json.loads(first.out), "made": False}
    assert again["simulated"] is True


def test_show_root_and_collateral(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    simulator("init", "--state", state)
    capsys.readouterr()
    assert simulator("show", "--state", state) == 0
    assert "simulator root" in capsys.readouterr().out
    assert simulator("root", "--state", state) == 0
    assert capsys.readouterr().out.startswith("-----BEGIN CERTIFICATE-----\n")
    assert simulator("collateral", "--state", state, "--tcb-status", "OutOfDate", "--advisory", "INTEL-SA-1") == 0
    collateral = Collateral.parse(capsys.readouterr().out)
    info = TcbInfo.parse(collateral.tcb_info)
    assert info.next_update - time.time() == pytest.approx(30 * 86400, abs=60)
    assert (info.levels[1].status, info.levels[1].advisory_ids) == ("OutOfDate", ("INTEL-SA-1",))


def test_no_platform(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert simulator("collateral", "--state", state) == 4
    assert f"simulator init --state {state}" in capsys.readouterr().err
