"""The warm process: shims are its forks, with the caller's surroundings; without it there is none and nothing is made."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from enclave_cc.host.shim import bootstrap, fork_server
from enclave_cc.host.shim.arguments import Arguments
from enclave_cc.host.shim.launcher import make_launcher

SERVER = """
import os, socket, sys
from enclave_cc.host.shim import bootstrap, fork_server
bootstrap.SOCKETS = sys.argv[1]
def serve(given, group, listener, path):
    listener = socket.socket(fileno=listener)
    accepted, _ = listener.accept()
    told = [os.getppid(), given.namespace, given.id, group, path, os.getcwd(), os.environ.get("ONLY_HERE"), sorted(os.environ)]
    accepted.sendall(repr(told).encode())
fork_server.run(serve)
"""


def test_a_fork_of_the_warm_process(short_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap, "SOCKETS", str(short_path))
    monkeypatch.setenv("ONLY_HERE", "as the caller has it")
    monkeypatch.chdir(short_path)
    environment = {name: value for name, value in os.environ.items() if name != "ONLY_HERE"}
    process = subprocess.Popen([sys.executable, "-c", SERVER, str(short_path)], env=environment)
    try:
        deadline = time.monotonic() + 20
        while not os.path.exists(fork_server.address()):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        path = str(short_path / "pod")
        listener = bootstrap.listen(path)
        assert listener is not None
        assert fork_server.ask(Arguments("start", "n", "/a", "c1"), "s1", listener, path)
        os.close(listener)
        with socket.socket(socket.AF_UNIX) as asking:
            asking.settimeout(10)
            asking.connect(path)
            told = eval(asking.makefile().read())
        assert told[:7] == [process.pid, "n", "c1", "s1", path, str(short_path), "as the caller has it"]
        assert set(told[7]) == set(os.environ)
    finally:
        process.kill()
        process.wait()


def test_without_it_nothing_is_made(short_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap, "SOCKETS", str(short_path))
    listener = bootstrap.listen(str(short_path / "pod"))
    assert listener is not None
    assert not fork_server.ask(Arguments("start", "n", "/a", "c1"), "s1", listener, "x")
    os.close(listener)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as dead:
        dead.bind(fork_server.address())
    listener = bootstrap.listen(str(short_path / "pod2"))
    assert listener is not None
    assert not fork_server.ask(Arguments("start", "n", "/a", "c1"), "s1", listener, "x")
    os.close(listener)


def test_the_launcher_starts_without_site(short_path: Path) -> None:
    launcher = short_path / "containerd-shim-rune-v2"
    launcher.write_text(make_launcher({"ENCLAVE_CC_CONFIG": "/a b"}))
    launcher.chmod(0o755)
    assert "Version" in subprocess.run([launcher, "-v"], capture_output=True, text=True, check=True).stdout
    text = launcher.read_text()
    assert " -IS\n" in text.split("import")[0]
    assert json.dumps("/a b").replace('"', "'") in text
    refused = subprocess.run([launcher, "start"], capture_output=True, text=True, check=False)
    assert refused.returncode == 1 and "-namespace" in refused.stderr
