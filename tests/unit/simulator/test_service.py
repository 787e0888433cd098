"""The simulated CPU's socket: callers are known by the kernel's word only."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from enclave_cc.enclave.tee.simulated import SimulatedPlatform
from enclave_cc.errors import PeerError
from enclave_cc.simulator.cpu import SimulatedEnclave
from enclave_cc.simulator.listener import listen
from enclave_cc.simulator.service import CpuService
from enclave_cc.wire.sgx.cpu_socket import Op, encode_request, parse_answer_body, parse_answer_header
from enclave_cc.wire.sgx.report import KeyRequest

if TYPE_CHECKING:
    from conftest import Machine

CHILD = """
import sys
from enclave_cc.enclave.tee.simulated import SimulatedPlatform
print(SimulatedPlatform(sys.argv[1]).identity.mr_enclave.hex())
"""
CONNECT_AND_DIE = "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1])"


@pytest.fixture
def path() -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp(prefix="cpu-", dir="/tmp"))
    yield directory / "cpu.sock"
    shutil.rmtree(directory)


def exchange(path: Path, data: bytes) -> tuple[bool, bytes]:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(5)
        connection.connect(str(path))
        connection.sendall(data)
        answer = b""
        while part := connection.recv(65536):
            answer += part
    return parse_answer_header(answer[:5])[0], answer[5:]


def test_each_process_is_its_own_enclave(machine: Machine, path: Path) -> None:
    ours, theirs = machine.launch("/ours"), machine.launch("/theirs")
    with CpuService(machine.cpu, path, lambda pid: ours if pid == os.getpid() else theirs):
        assert SimulatedPlatform(str(path)).identity == ours.identity
        child = subprocess.run([sys.executable, "-c", CHILD, str(path)], check=True, capture_output=True, text=True, timeout=30)
        assert child.stdout.strip() == theirs.identity.mr_enclave.hex()


@pytest.mark.root
def test_a_process_in_a_pid_namespace_is_known_by_its_pid_outside(machine: Machine, path: Path) -> None:
    seen: list[list[str]] = []

    def identify(pid: int) -> SimulatedEnclave:
        status = Path(f"/proc/{pid}/status").read_text()
        seen.append(next(line for line in status.splitlines() if line.startswith("NSpid:")).split()[1:])
        return machine.launch()

    with CpuService(machine.cpu, path, identify):
        command = ["unshare", "--pid", "--fork", "--kill-child", sys.executable, "-c", CHILD, str(path)]
        subprocess.run(command, check=True, capture_output=True, timeout=30)
    ((outside, inside),) = seen
    assert inside == "1"
    assert outside != "1"


def test_a_process_of_no_enclave_gets_nothing(machine: Machine, path: Path) -> None:
    lines: list[str] = []

    def identify(pid: int) -> SimulatedEnclave:
        raise PeerError("report-refused", f"process {pid} is in no enclave")

    with CpuService(machine.cpu, path, identify, log=lines.append):
        for op in (Op.SELF, Op.QE_TARGET):
            done, body = exchange(path, encode_request(op))
            assert not done
            with pytest.raises(PeerError, match="in no enclave") as caught:
                parse_answer_body(op, done, body)
            assert caught.value.code == "report-refused"
    assert len(lines) == 2
    assert "report-refused" in lines[0]


def test_a_peer_that_died_is_not_identified(machine: Machine, path: Path) -> None:
    """Its pid might be somebody else's by now."""
    lines: list[str] = []
    refused, died = threading.Event(), threading.Event()

    def identify(_pid: int) -> SimulatedEnclave:
        died.wait(10)
        return machine.launch()

    def log(line: str) -> None:
        lines.append(line)
        refused.set()

    with CpuService(machine.cpu, path, identify, log=log):
        child = subprocess.Popen([sys.executable, "-c", CONNECT_AND_DIE, str(path)])
        assert child.wait(30) == 0
        died.set()
        assert refused.wait(10)
    assert "is gone" in lines[0]


@pytest.mark.parametrize("data", [b"\x99\0\0\0\0", b"\1\1\0\0\0x", b"\2\0\0\0\xff", b"GET / HTTP/1.1\r\n\r\n"])
def test_garbage_is_refused(machine: Machine, path: Path, data: bytes) -> None:
    with CpuService(machine.cpu, path, lambda _pid: machine.launch()):
        done, _ = exchange(path, data[:5])
        assert not done
        assert SimulatedPlatform(str(path)).simulated


def test_a_peer_that_says_nothing_is_dropped(machine: Machine, path: Path) -> None:
    with CpuService(machine.cpu, path, lambda _pid: machine.launch(), deadline=0.2):
        with socket.socket(socket.AF_UNIX) as silent:
            silent.settimeout(5)
            silent.connect(str(path))
            start = time.monotonic()
            assert silent.recv(1) == b""
            assert time.monotonic() - start < 3
        assert SimulatedPlatform(str(path)).simulated


def test_a_peer_that_trickles_is_dropped(machine: Machine, path: Path) -> None:
    with CpuService(machine.cpu, path, lambda _pid: machine.launch(), deadline=0.4):
        with socket.socket(socket.AF_UNIX) as slow:
            slow.settimeout(5)
            slow.connect(str(path))
            start = time.monotonic()
            with pytest.raises((BrokenPipeError, ConnectionResetError)):
                slow.sendall(encode_request(Op.EGETKEY, KeyRequest(key_name=3))[:5])
                while time.monotonic() - start < 5:
                    slow.sendall(b"\0")
                    time.sleep(0.05)
            assert time.monotonic() - start < 3


def test_a_socket_made_beforehand_is_served(machine: Machine, path: Path) -> None:
    listener = listen(path)
    service = CpuService(machine.cpu, path, lambda _pid: machine.launch())
    service.start(listener)
    assert SimulatedPlatform(str(path)).simulated
    service.close()
    assert not path.exists()


def test_closing_removes_the_socket_and_may_be_repeated(machine: Machine, path: Path) -> None:
    service = CpuService(machine.cpu, path, lambda _pid: machine.launch())
    service.start()
    assert path.is_socket()
    start = time.monotonic()
    service.close()
    service.close()
    assert time.monotonic() - start < 2
    assert not path.exists()
    assert not [t for t in threading.enumerate() if t.name == "simulated-cpu"]


def test_a_stale_socket_is_replaced(machine: Machine, path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    with CpuService(machine.cpu, path, lambda _pid: machine.launch()):
        assert SimulatedPlatform(str(path)).simulated


def test_an_identify_that_fails_does_not_stop_the_service(machine: Machine, path: Path) -> None:
    calls = []

    def identify(_pid: int) -> SimulatedEnclave:
        calls.append(1)
        if len(calls) == 1:
            raise OSError("/proc is gone")
        return machine.launch()

    with CpuService(machine.cpu, path, identify):
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(5)
            connection.connect(str(path))
            assert connection.recv(1) == b""
        assert SimulatedPlatform(str(path)).simulated
