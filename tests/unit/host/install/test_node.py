"""What `node setup` does with services: nothing that it was not told to, and each in its order."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from enclave_cc.__main__ import main as cli
from enclave_cc.host.install import node


@pytest.fixture
def calls(short_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A systemctl that writes down what it is asked, on a machine that has systemd."""
    written, program = short_path / "calls", short_path / "programs/systemctl"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\necho "$@" >>{written}\n')
    program.chmod(0o755)
    written.touch()
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setattr(node, "_has_systemd", lambda: True)
    return written


def set_up(directory: Path, *words: str) -> int:
    configuration = directory / "enclave-cc.toml"
    configuration.write_text(f'[paths]\nstate = "{directory}/state"\nrun = "{directory}/run"\n')
    places = ["--config", str(configuration), "--links", str(directory / "bin"), "--units", str(directory / "units")]
    return cli(["node", "setup", "--containerd", str(directory / "containerd.toml"), *places, *words])


def test_nothing_is_restarted_unasked(short_path: Path, calls: Path) -> None:
    assert set_up(short_path) == 0
    unit = (short_path / "units/enclave-cc-snapshotter.service").read_text()
    assert "KillMode=mixed\n" in unit  # the fork server is ended by the snapshotter, shims by nobody
    assert set_up(short_path) == 0
    assert calls.read_text() == ""
    assert set_up(short_path, "--undo") == 0
    assert calls.read_text() == "disable enclave-cc-snapshotter\n"  # which stops nothing
    assert not (short_path / "units").exists()


def test_the_units_command_is_taken_word_by_word(short_path: Path, calls: Path) -> None:
    place = short_path / "a b%c"
    place.mkdir()
    assert set_up(place) == 0
    unit = (place / "units/enclave-cc-snapshotter.service").read_text()
    assert f' --config "{short_path}/a b%%c/enclave-cc.toml" --content ' in unit
    assert calls.read_text() == ""


def test_what_is_asked_for_is_restarted_in_order(short_path: Path, calls: Path) -> None:
    assert set_up(short_path, "--restart") == 0
    first = ["daemon-reload", "enable enclave-cc-snapshotter", "restart enclave-cc-snapshotter", "restart containerd"]
    assert calls.read_text().splitlines() == first
    assert set_up(short_path, "--undo", "--restart") == 0
    then = ["disable enclave-cc-snapshotter", "daemon-reload", "restart containerd", "stop enclave-cc-snapshotter"]
    assert calls.read_text().splitlines() == [*first, *then]
