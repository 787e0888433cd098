"""The pod's platform as the shim has it, where that cannot be had: whoever asks waits, and nothing spins meanwhile."""

from __future__ import annotations

import socket
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from enclave_cc.errors import EnvironmentFault
from enclave_cc.host.shim import bootstrap, enclaves
from enclave_cc.host.shim.log import Log
from enclave_cc.host.shim.reaper import Reaper
from enclave_cc.simulator import listener


class Broken:
    """A pod whose platform fails: a fault that no real one can be made to show while the pod runs."""

    def __init__(self, directory: Path) -> None:
        self.id, self.sockets = "pod", directory
        self.configuration: Any = SimpleNamespace(deadlines=SimpleNamespace(app_start=5.0))
        self.places: Any = SimpleNamespace(simulator=directory, measurements=directory)
        self.tries = 0

    def make_enclaves(self) -> Any:
        self.tries += 1
        raise EnvironmentFault("environment", "the platform cannot be read")


def test_a_platform_that_cannot_be_had_is_tried_again_at_leisure(short_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap, "SOCKETS", str(short_path))  # no fork server
    monkeypatch.setattr(enclaves, "_PAUSE", 0.1)
    reaper = Reaper(Log(None))
    reaper.start()
    pod = Broken(short_path)
    platform = enclaves.SleepingEnclaves(pod, reaper)  # type: ignore[arg-type]
    platform.start(listener.listen(short_path / "cpu.sock"))
    platform._fall_asleep(None)  # type: ignore[arg-type]
    with socket.socket(socket.AF_UNIX) as asking:
        asking.connect(str(short_path / "cpu.sock"))
        until = time.monotonic() + 20
        while pod.tries < 3 and time.monotonic() < until:
            time.sleep(0.01)
        begun, before = time.monotonic(), pod.tries
        time.sleep(1)
        assert 1 <= pod.tries - before <= (time.monotonic() - begun) / 0.1 + 1
    platform.close()
