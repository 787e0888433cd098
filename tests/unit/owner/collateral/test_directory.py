"""A directory of collateral, as somebody else changes it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from enclave_cc.owner.collateral.directory import DirectoryCollateral
from enclave_cc.owner.collateral.source import Found

from .conftest import NOW

DAY = 86400


def test_files_come_go_and_change(machine: Any, stranger: Any, tmp_path: Path) -> None:
    reports: list[tuple[str, str]] = []
    time = [0.0]
    source = DirectoryCollateral(tmp_path, report=lambda *report: reports.append(report), clock=lambda: time[0])

    def find(machine: Any = machine, at: int = NOW) -> Any:
        time[0] += 2
        return source.find(machine.origin, machine.root, at)

    assert find() is None
    (tmp_path / "a.json").write_bytes(machine.collateral().encode())
    assert machine.verify(find().collateral) == "UpToDate"
    assert find(stranger) is None
    (tmp_path / "b.json").write_bytes(stranger.collateral().encode())
    assert stranger.verify(find(stranger).collateral) == "UpToDate"
    # of several, the latest that holds
    (tmp_path / "old.json").write_bytes(machine.collateral(NOW - 60 * DAY).encode())
    (tmp_path / "later.json").write_bytes(machine.collateral(NOW + 5).encode())
    assert find(at=NOW + 10).end == Found.read(machine.collateral(NOW + 5)).end
    assert find(at=NOW - 40 * DAY).start < NOW - DAY
    # broken ones are told of once, and change nothing
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "text.txt").write_text("{")
    (tmp_path / "sub.json").mkdir()
    (tmp_path / "tdx.json").write_bytes(machine.collateral().encode().replace(b"tcb_info_signature", b"other"))
    for _ in range(3):
        assert find() is not None
    assert sorted(name for name, _ in reports) == ["broken.json", "tdx.json"]
    # replaced by renaming, then taken away
    (tmp_path / "new").write_bytes(machine.collateral(NOW - 5).encode())
    for name in ("later.json", "old.json"):
        (tmp_path / name).unlink()
    os.replace(tmp_path / "new", tmp_path / "a.json")
    assert find().end == Found.read(machine.collateral(NOW - 5)).end
    (tmp_path / "a.json").unlink()
    assert find() is None


def test_a_directory_that_is_gone_for_a_moment(machine: Any, tmp_path: Path) -> None:
    reports: list[tuple[str, str]] = []
    time = [0.0]
    (tmp_path / "d").mkdir()
    (tmp_path / "d/a.json").write_bytes(machine.collateral().encode())
    source = DirectoryCollateral(tmp_path / "d", report=lambda *report: reports.append(report), clock=lambda: time[0])
    assert source.find(machine.origin, machine.root, NOW) is not None
    (tmp_path / "d").rename(tmp_path / "e")
    time[0] += 2
    assert source.find(machine.origin, machine.root, NOW) is not None
    assert len(reports) == 1


def test_it_is_not_looked_at_for_every_quote(machine: Any, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(machine.collateral().encode())
    source = DirectoryCollateral(tmp_path, report=lambda *_: None, clock=lambda: 0.0)
    assert source.find(machine.origin, machine.root, NOW) is not None
    (tmp_path / "a.json").unlink()
    assert source.find(machine.origin, machine.root, NOW) is not None
