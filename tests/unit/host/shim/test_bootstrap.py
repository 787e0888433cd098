"""`start`: how containerd calls, what it is told, and one shim a pod."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from enclave_cc.host.shim import arguments, bootstrap
from enclave_cc.host.shim.arguments import Arguments

CALL = ["-namespace", "k8s.io", "-address", "/run/c.sock", "-publish-binary", "/usr/bin/containerd", "-id", "c1"]


def test_the_command_line() -> None:
    given = arguments.parse([*CALL, "start"])
    assert (given.verb, given.namespace, given.address, given.id) == ("start", "k8s.io", "/run/c.sock", "c1")
    given = arguments.parse(["--debug", "-bundle=/b", "-id=c1", "delete"])
    assert (given.verb, given.id, given.bundle, given.switches) == ("delete", "c1", "/b", {"debug"})
    for wrong in (["-nonsense", "start"], ["-id"]):
        with pytest.raises(ValueError, match=r"-"):
            arguments.parse(wrong)


def test_the_answer_in_each_version_of_the_protocol() -> None:
    assert bootstrap.describe("unix:///run/s", "") == "unix:///run/s"  # 1.6 names no version
    assert bootstrap.describe("unix:///run/s", "2") == "unix:///run/s"  # 1.7
    told = json.loads(bootstrap.describe("unix:///run/s", "3"))
    assert told == {"version": 3, "address": "unix:///run/s", "protocol": "ttrpc"}
    assert json.loads(bootstrap.describe("unix:///run/s", "4"))["version"] == 3


def test_a_socket_for_each_containerd_namespace_and_pod() -> None:
    calls = [("/a", "n", "p"), ("/b", "n", "p"), ("/a", "m", "p"), ("/a", "n", "q")]
    paths = {bootstrap.socket_path(Arguments(address=a, namespace=n), group) for a, n, group in calls}
    assert len(paths) == len(calls)
    assert all(len(path) <= 107 for path in paths)


@pytest.fixture
def sockets(short_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(bootstrap, "SOCKETS", str(short_path / "s"))
    return short_path


def write_bundle(place: Path, sandbox: str | None) -> None:
    place.mkdir()
    annotations = {"io.kubernetes.cri.sandbox-id": sandbox} if sandbox else None
    (place / "config.json").write_text(json.dumps({"annotations": annotations}))


def test_one_shim_a_pod(sockets: Path) -> None:
    """In processes of their own, as containerd calls them: `start` forks and the parent returns."""
    script = (
        "import os, socket, sys\nfrom enclave_cc.host.shim import arguments, bootstrap\n"
        f"bootstrap.SOCKETS = {str(sockets / 's')!r}\n"
        "def serve(given, group, listener, path):\n"
        "    listener = socket.socket(fileno=listener)\n"
        "    accepted, _ = listener.accept(); accepted.close()\n"  # the second start's question
        "    accepted, _ = listener.accept(); accepted.sendall(f'{os.getpid()} {group}'.encode())\n"
        "bootstrap.start(arguments.parse(sys.argv[1:]), serve)\n"
    )
    told = []
    for name, sandbox in (("s1", "s1"), ("c1", "s1")):
        write_bundle(sockets / name, sandbox)
        words = [sys.executable, "-c", script, "-namespace", "n", "-address", "/a", "-id", name, "start"]
        environment = {name: value for name, value in os.environ.items() if name != "MAX_SHIM_VERSION"}
        done = subprocess.run(words, cwd=sockets / name, capture_output=True, text=True, timeout=20, check=True, env=environment)
        told.append(done.stdout)
        assert (sockets / name / "address").read_text() == done.stdout
    assert told[0] == told[1]
    with socket.socket(socket.AF_UNIX) as asking:
        asking.settimeout(10)
        asking.connect(told[0].removeprefix("unix://"))
        assert asking.recv(100).endswith(b" s1")


def test_a_dead_shims_socket_is_replaced(sockets: Path) -> None:
    path = sockets / "dead"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    listener = bootstrap.listen(str(path))
    assert listener is not None
    with socket.socket(fileno=listener):
        assert bootstrap.listen(str(path)) is None  # this one lives
        assert path.stat().st_mode & 0o777 == 0o600


def test_a_hung_shim_with_a_full_queue_holds_up_no_start(sockets: Path) -> None:
    path = str(sockets / "full")
    waiting = []
    with socket.socket(socket.AF_UNIX) as hung:
        hung.bind(path)
        hung.listen(0)
        with pytest.raises(BlockingIOError):
            while True:
                waiting.append(socket.socket(socket.AF_UNIX))
                waiting[-1].setblocking(False)
                waiting[-1].connect(path)
        assert bootstrap.listen(path) is None
        for client in waiting:
            client.close()


def test_sockets_of_shims_that_never_listened_go(short_path: Path) -> None:
    import socket

    from enclave_cc.host.shim import cleanup

    dead, new, foreign = (short_path / name for name in ("a-rune", "b-rune", "c"))
    for path in (dead, new, foreign):
        with socket.socket(socket.AF_UNIX) as unheard:
            unheard.bind(str(path))
    for path in (dead, foreign):
        os.utime(path, (1, 1))
    with socket.socket(socket.AF_UNIX) as heard:
        heard.bind(str(short_path / "d-rune"))
        heard.listen()
        os.utime(short_path / "d-rune", (1, 1))
        cleanup.remove_dead_sockets(str(short_path))
    assert sorted(path.name for path in short_path.iterdir()) == ["b-rune", "c", "d-rune"]
