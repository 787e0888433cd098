"""The back-ends: simulated passes the conformance suite, refuse refuses, and nothing else exists."""

from __future__ import annotations

import os
import shutil
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from enclave_cc.crypto import rsa3072
from enclave_cc.enclave.tee.open import open_platform
from enclave_cc.errors import EnvironmentFault, PeerError, UsageError
from enclave_cc.simulator.cpu import SimulatedEnclave, SoftwareCpu
from enclave_cc.simulator.platform import Platform
from enclave_cc.simulator.service import CpuService
from enclave_cc.wire.sgx import cpu_socket, manifest, sigstruct

sys.path.insert(0, str(Path(__file__).parents[3] / "suites"))

import tee as suite


@pytest.fixture(scope="module")
def directory() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="tee-", dir="/tmp"))  # unix socket paths are short
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="module")
def enclaves(directory: Path) -> Iterator[suite.Enclaves]:
    key = rsa3072.SigningKey.generate()

    def launch(cpu: SoftwareCpu, role: str) -> SimulatedEnclave:
        text = manifest.Manifest(role=role, entrypoint=("/x",)).encode()
        signed = sigstruct.sign(key, mr_enclave=manifest.measure(text), isv_prod_id=1, isv_svn=3, date=20260101)
        return cpu.launch(text, signed.encode(), config_id=role.encode().ljust(64, b"\0"))

    here, there = (SoftwareCpu(Platform.create(directory / name)) for name in ("here", "there"))
    opened = []
    with ExitStack() as stack:
        for number, (cpu, role) in enumerate(((here, "agent"), (here, "app"), (there, "agent"))):
            path, enclave = directory / f"{number}.sock", launch(cpu, role)
            stack.enter_context(CpuService(cpu, path, lambda _pid, enclave=enclave: enclave))
            opened.append(open_platform("simulated", cpu_socket=str(path)))
        yield suite.Enclaves(*opened)


class TestSimulated(suite.TeeSuite):
    def test_it_says_what_it_is(self, enclaves: suite.Enclaves) -> None:
        assert enclaves.one.simulated
        assert enclaves.one.name == "simulated"

    def test_many_threads_at_once(self, enclaves: suite.Enclaves) -> None:
        failed: list[BaseException] = []

        def work() -> None:
            try:
                for _ in range(5):
                    enclaves.other.verify(enclaves.one.report(enclaves.other.target_info(), b"x"))
            except BaseException as error:
                failed.append(error)

        threads = [threading.Thread(target=work) for _ in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failed == []


def test_the_default_refuses() -> None:
    for names in ((), ("refuse",)):
        with pytest.raises(EnvironmentFault) as caught:
            open_platform(*names)
        assert caught.value.code == "tee-refused"


@pytest.mark.parametrize("name", ["", "Simulated", "gramine", "sgx"])
def test_unknown_names(name: str) -> None:
    with pytest.raises(UsageError) as caught:
        open_platform(name)
    assert caught.value.code == "bad-config"


def test_no_cpu(directory: Path) -> None:
    with pytest.raises(EnvironmentFault) as caught:
        open_platform("simulated", cpu_socket=str(directory / "none.sock"))
    assert caught.value.code == "environment"


@pytest.mark.parametrize(
    ("answer", "error", "code"),
    [
        (b"", EnvironmentFault, "environment"),
        (b"\0\x80\1\0\0short", EnvironmentFault, "environment"),
        (b"\0\1\0\0\0x", PeerError, "malformed"),
        (b"\7\0\0\0\0", PeerError, "malformed"),
        (cpu_socket.encode_refusal("report-refused", "you are no enclave"), PeerError, "report-refused"),
    ],
)
def test_a_cpu_that_answers_wrongly(directory: Path, answer: bytes, error: type[Exception], code: str) -> None:
    path = directory / f"wrong-{os.urandom(4).hex()}.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            peer, _ = listener.accept()
            with peer:
                peer.recv(4096)
                peer.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(error) as caught:
            open_platform("simulated", cpu_socket=str(path))
        assert caught.value.code == code  # type: ignore[attr-defined]
        thread.join()


def test_a_cpu_that_never_answers(directory: Path) -> None:
    path = directory / "silent.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        start = time.monotonic()
        with pytest.raises(EnvironmentFault) as caught:
            open_platform("simulated", cpu_socket=str(path), deadline=0.2)
        assert caught.value.code == "deadline"
        assert time.monotonic() - start < 2
