"""`run -d` between the command and the supervisor that it leaves behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from enclave_cc.errors import EnvironmentFault
from enclave_cc.host.cli.detach import run_detached

PROGRAM = """
import signal, sys, time
from pathlib import Path
from enclave_cc.host.cli.detach import run_detached

signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever runs the tests in the background ignores it

def supervise(on_running):
    ended = []
    signal.signal(signal.SIGTERM, lambda *_: ended.append(1))
    Path(sys.argv[1], "starting").touch()
    while not ended:
        time.sleep(0.02)
    time.sleep(0.2)
    Path(sys.argv[1], "taken down").touch()
    return 143

sys.exit(run_detached(supervise, deadline=10))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_the_start_and_waits_for_its_end(number: int, tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, str(tmp_path)], stderr=subprocess.DEVNULL)
    until = time.monotonic() + 20
    while not (tmp_path / "starting").exists():
        assert time.monotonic() < until
        time.sleep(0.01)
    process.send_signal(number)
    assert process.wait(20) in (128 + number, -number)
    assert (tmp_path / "taken down").exists()


def test_the_id_is_printed_and_the_supervisor_lives_on(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def supervise(on_running: Callable[[str], None]) -> int:
        on_running("abc")
        os.read(os.open(tmp_path / "end", os.O_RDONLY), 1)
        return 0

    os.mkfifo(tmp_path / "end")
    assert run_detached(supervise, deadline=5) == 0
    assert capfd.readouterr().out == "abc\n"
    (tmp_path / "end").write_text("x")  # opens only when somebody reads


def test_an_error_of_the_start_is_raised_here(tmp_path: Path) -> None:
    def supervise(on_running: Callable[[str], None]) -> int:
        raise EnvironmentFault("deadline", "too long")

    with pytest.raises(Exception, match="too long") as caught:
        run_detached(supervise, deadline=5)
    assert (caught.value.code, caught.value.exit) == ("deadline", 7)  # type: ignore[attr-defined]
