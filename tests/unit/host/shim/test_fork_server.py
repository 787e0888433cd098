"""The warm process: its forks stand where the asker stands; without it, or when it fails, nothing is made and nothing is lost."""

from __future__ import annotations

import ast
import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

import enclave_cc
from enclave_cc.host.shim import bootstrap, fork_server, launcher
from enclave_cc.host.snapshotter import companion

SERVER = """
import gc, os, resource, signal, socket, sys
from enclave_cc.host.shim import bootstrap, fork_server
bootstrap.SOCKETS, fork_server.__file__, fork_server._LOOK = sys.argv[1], sys.argv[2], 50
fork_server.LOADED = fork_server.identify_code()
signal.signal(signal.SIGQUIT, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])
def tell(words, descriptors):
    open(os.path.join(sys.argv[1], "told"), "w").close()
    accepted, _ = socket.socket(fileno=descriptors[0]).accept()
    places = [f"/proc/self/fd/{n}" for n in os.listdir("/proc/self/fd")]
    links = {os.path.basename(os.readlink(place)) for place in places if os.path.exists(place)}
    umask = os.umask(0)
    told = dict(parent=os.getppid(), words=list(words), cwd=os.getcwd(), environment=dict(os.environ), umask=umask,
        links=sorted(l for l in links if not l.startswith("socket:")), session=os.getsid(0) == os.getpid(),
        limit=resource.getrlimit(resource.RLIMIT_NOFILE), nice=os.getpriority(os.PRIO_PROCESS, 0),
        groups=open("/proc/self/cgroup").read(), score=open("/proc/self/oom_score_adj").read(), sockets=len(links),
        collecting=gc.isenabled(), frozen=gc.get_freeze_count() > 1000, processors=os.sched_getaffinity(0),
        signals=[line for line in open("/proc/self/status") if line.startswith(("SigBlk", "SigIgn"))])
    accepted.sendall(repr(told).encode())
fork_server.run({"tell": tell, "ping": lambda *_: None})
"""

ASKER = """
import os, resource, signal, socket, sys
from enclave_cc.host.shim import bootstrap, fork_server
bootstrap.SOCKETS, fork_server.__file__ = sys.argv[1], sys.argv[2]
fork_server.LOADED = fork_server.identify_code()
exec(sys.argv[3])
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1] + "/tell")
listener.listen()
sys.exit(0 if fork_server.ask("tell", ["a", "", "b"], [listener.fileno()]) else 9)
"""


class Server:
    """A fork server of a test's own; `code` stands for the code that it has loaded."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.code = directory / "code"
        self.code.touch()
        command = [sys.executable, "-c", SERVER, str(directory), str(self.code)]
        environment = {**os.environ, "ONLY_THERE": "in the server's environment"}
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, env=environment)
        wait_until(lambda: fork_server.ask("ping", (), (), code=fork_server.identify_code()))

    @property
    def pid(self) -> int:
        return self.process.pid

    def ask_from(self, preparation: str = "") -> int:
        """The exit code of another process that asks for a fork, after running `preparation`: 0 when it got one."""
        command = [sys.executable, "-c", ASKER, str(self.directory), str(self.code), preparation]
        return subprocess.run(
            command, check=False, cwd=self.directory, env={**os.environ, "ONLY_HERE": "x=y"}, timeout=20
        ).returncode

    def read_told(self) -> dict[str, Any]:
        with socket.socket(socket.AF_UNIX) as asking:
            asking.settimeout(10)
            asking.connect(str(self.directory / "tell"))
            told: dict[str, Any] = ast.literal_eval(asking.makefile().read())
        (self.directory / "tell").unlink()
        return told

    def children(self) -> str:
        return Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text()


def wait_until(condition: Callable[[], object], seconds: float = 20) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "the condition did not come true in time"
        time.sleep(0.02)


@pytest.fixture
def server(short_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(bootstrap, "SOCKETS", str(short_path))
    monkeypatch.setattr(fork_server, "__file__", str(short_path / "code"))
    made = Server(short_path)
    monkeypatch.setattr(fork_server, "LOADED", fork_server.identify_code())
    yield made
    made.process.kill()
    with made.process:
        pass


def test_a_fork_has_what_its_asker_has_and_nothing_of_the_server(server: Server) -> None:
    assert server.ask_from() == 0
    told = server.read_told()
    assert told["parent"] == server.pid
    assert (told["words"], told["cwd"], told["session"]) == (["a", "", "b"], str(server.directory), True)
    assert told["environment"].pop("ONLY_HERE") == "x=y"
    assert told["environment"] == {name: os.environ[name] for name in told["environment"]}
    assert set(told["environment"]) == set(os.environ)
    assert told["links"] == ["null"]
    assert told["collecting"] and told["frozen"]
    assert told["sockets"] == 2  # the accepted connection and null; the fork has closed what came along


def test_limits_priority_umask_and_score_are_the_askers(server: Server) -> None:
    preparation = (
        "os.umask(0o27); os.nice(3); resource.setrlimit(resource.RLIMIT_NOFILE, (777, 888)); "
        "open('/proc/self/oom_score_adj', 'w').write('321')"
    )
    assert server.ask_from(preparation) == 0
    told = server.read_told()
    assert (told["umask"], told["nice"], told["limit"], told["score"]) == (0o27, 3, (777, 888), "321\n")
    assert server.ask_from() == 0
    told = server.read_told()
    assert told["limit"] == resource.getrlimit(resource.RLIMIT_NOFILE)
    assert told["score"] == Path("/proc/self/oom_score_adj").read_text()


def test_signals_and_processors_are_the_askers(server: Server) -> None:
    """What is ignored or blocked, programs inherit, down to the workload."""
    usual = [line for line in Path("/proc/self/status").read_text().splitlines(True) if line.startswith(("SigBlk", "SigIgn"))]
    assert server.ask_from() == 0
    assert server.read_told()["signals"] == usual
    preparation = (
        "signal.signal(signal.SIGHUP, signal.SIG_IGN); signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1]); "
        "os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])"
    )
    assert server.ask_from(preparation) == 0
    told = server.read_told()
    blocked, ignored = (int(line.split()[1], 16) for line in told["signals"])
    assert blocked == 1 << signal.SIGUSR1 - 1
    assert ignored == int(usual[1].split()[1], 16) | 1 << signal.SIGHUP - 1
    assert told["processors"] == {min(os.sched_getaffinity(0))}


@pytest.mark.root
def test_a_fork_is_in_the_askers_control_groups(server: Server) -> None:
    top = next(p for p in (Path("/sys/fs/cgroup/pids"), Path("/sys/fs/cgroup/unified"), Path("/sys/fs/cgroup")) if p.is_dir())
    group = top / f"enclave-cc-test-{os.urandom(4).hex()}"
    group.mkdir()
    try:
        assert server.ask_from(f"open('{group}/cgroup.procs', 'w').write('0')") == 0
        told = server.read_told()
        assert f"/{group.name}\n" in told["groups"]
        assert f"/{group.name}\n" not in Path(f"/proc/{server.pid}/cgroup").read_text()
    finally:
        wait_until(lambda: not (group / "cgroup.procs").read_text())
        group.rmdir()


@pytest.mark.root
@pytest.mark.parametrize(
    "elsewhere",
    [
        "import ctypes; assert not ctypes.CDLL(None).unshare(0x20000)",  # mounts
        "import ctypes; assert not ctypes.CDLL(None).unshare(0x40000000)",  # network
        "import ctypes; assert not ctypes.CDLL(None).prctl(24, 21, 0, 0, 0)",  # a smaller bounding set
        "os.setgroups([12345])",
        "os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))",
    ],
)
def test_whoever_stands_elsewhere_gets_none(server: Server, elsewhere: str) -> None:
    assert server.ask_from(elsewhere) == 9
    assert not (server.directory / "told").exists()


def test_without_it_nothing_is_made(short_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap, "SOCKETS", str(short_path))
    assert not fork_server.ask("ping", (), ())
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as dead:
        dead.bind(fork_server.address())
    assert not fork_server.ask("ping", (), ())


def replace(code: Path) -> None:
    """As an upgrade does."""
    fresh = code.with_name("fresh")
    fresh.touch()
    fresh.rename(code)


def test_one_whose_code_was_replaced_ends(server: Server) -> None:
    path = Path(fork_server.address())
    replace(server.code)
    assert fork_server.identify_code() != fork_server.LOADED
    assert server.process.wait(10) == 0
    assert not path.exists()


def test_who_has_loaded_other_code_does_not_ask(server: Server) -> None:
    """A shim that runs since before an upgrade, beside the server of after."""
    assert server.ask_from("fork_server.LOADED = 'older'") == 9
    assert not (server.directory / "told").exists()
    (server.directory / "tell").unlink()
    replace(server.code)
    server.process.wait(10)
    newer = Server(server.directory)
    try:
        assert not fork_server.ask("ping", (), ())
        assert newer.ask_from() == 0
        assert newer.read_told()["parent"] == newer.pid
    finally:
        newer.process.kill()
        with newer.process:
            pass


def test_what_killed_ones_left_is_taken_away_and_nothing_else(server: Server) -> None:
    left, others = server.directory / "rune-0123456789abcdef", server.directory / "0123456789abcdef-rune"
    for path in (left, others):
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as dead:
            dead.bind(str(path))
            dead.listen()
    fork_server._listen(f"{server.directory}/rune-fedcba9876543210").close()
    assert others.exists() and not left.exists()
    assert fork_server.ask("ping", (), ())


def test_a_hung_one_with_a_full_queue_holds_up_no_second(server: Server) -> None:
    os.kill(server.pid, signal.SIGSTOP)
    waiting = []
    try:
        with pytest.raises(BlockingIOError):
            while True:
                waiting.append(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
                waiting[-1].setblocking(False)
                waiting[-1].connect(fork_server.address())
        assert not fork_server.ask("ping", (), ())
        with pytest.raises(OSError, match="in use"):
            fork_server._listen(fork_server.address())
    finally:
        os.kill(server.pid, signal.SIGCONT)
        for client in waiting:
            client.close()
    wait_until(lambda: fork_server.ask("ping", (), ()))
    wait_until(lambda: not server.children())


def test_it_keeps_nothing_of_what_it_was_asked(server: Server) -> None:
    def descriptors() -> list[str]:
        return sorted(os.readlink(path) for path in Path(f"/proc/{server.pid}/fd").iterdir())

    before = descriptors()
    for _ in range(20):
        assert fork_server.ask("ping", (), ())
    wait_until(lambda: descriptors() == before and not server.children())


def test_an_unknown_role_is_refused_or_does_nothing(server: Server) -> None:
    fork_server.ask("nonsense", ["x"], ())
    assert fork_server.ask("ping", (), ())
    wait_until(lambda: not server.children())
    assert not (server.directory / "told").exists()


def test_garbage_and_silence_hold_nobody_up(server: Server) -> None:
    silent = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    silent.connect(fork_server.address())
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as other:
        other.connect(fork_server.address())
        other.send(b"\0" * 1000)
    assert fork_server.ask("ping", (), ())
    silent.close()
    wait_until(lambda: not server.children())


def test_a_hung_one_is_given_up_and_does_nothing_later(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fork_server, "_DEADLINE", 0.3)
    os.kill(server.pid, signal.SIGSTOP)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(server.directory / "tell"))
        listener.listen()
        assert not fork_server.ask("tell", (), [listener.fileno()])
        os.kill(server.pid, signal.SIGCONT)
        monkeypatch.setattr(fork_server, "_DEADLINE", 2.0)
        assert fork_server.ask("ping", (), ())  # it has got to the request that was given up before
        wait_until(lambda: not server.children())
    assert not (server.directory / "told").exists()


def test_one_that_is_killed_while_it_is_asked(server: Server) -> None:
    os.kill(server.pid, signal.SIGSTOP)
    answers: list[bool] = []
    asking = threading.Thread(target=lambda: answers.append(fork_server.ask("ping", (), ())))
    asking.start()
    time.sleep(0.1)
    server.process.kill()
    asking.join(10)
    assert answers == [False]


@pytest.mark.parametrize("end", ["killed", "told to"])
def test_its_forks_outlive_it(server: Server, end: str) -> None:
    assert server.ask_from() == 0
    if end == "killed":
        server.process.kill()
    else:
        assert server.process.stdin is not None
        server.process.stdin.close()
    server.process.wait(10)
    assert server.read_told()["words"] == ["a", "", "b"]


def test_it_ends_with_whoever_started_it(server: Server) -> None:
    path = fork_server.address()
    assert server.process.stdin is not None
    server.process.stdin.close()
    assert server.process.wait(10) == 0
    assert not Path(path).exists()


@pytest.mark.usefixtures("own_code")
def test_a_shim_by_start(short_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real command, its real fork server, and how the shim is shown."""
    (short_path / "config.json").write_text("{}")
    program = short_path / launcher.NAME
    program.write_text(launcher.make_launcher())
    program.chmod(0o755)
    with running_companion():
        command = [program, "-namespace", "ns-test", "-address", "", "-id", short_path.name, "start"]
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=short_path, timeout=20)
        path = done.stdout.removeprefix("unix://")
        shim = next(pid for pid in all_pids() if short_path.name in show(pid) and "-namespace ns-test" in show(pid))
        assert show(shim).startswith(f"{launcher.NAME} -namespace ns-test -id {short_path.name}")
        assert Path(f"/proc/{shim}/comm").read_text() == "containerd-shim\n"  # as when it is started by itself
        (short_path / "config.json").unlink()  # as containerd does when it gives up
        os.kill(shim, signal.SIGTERM)
        wait_until(lambda: not Path(path).exists())


@pytest.mark.usefixtures("own_code")
@pytest.mark.skipif(not Path("/proc/self/ksm_stat").exists(), reason="this kernel does not tell")
def test_the_simulated_cpu_keeps_its_keys_unmerged_and_ends_with_its_shim(short_path: Path) -> None:
    control, remote = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    life, remote_life = os.pipe()
    words = [short_path.name, str(short_path / "simulator"), str(short_path / "measurements"), str(short_path / "cpu.sock")]
    with running_companion(), control:
        assert fork_server.ask("cpu", words, [remote.fileno(), remote_life])
        remote.close()
        os.close(remote_life)
        control.settimeout(20)
        control.send(json.dumps({"do": "forget", "container": "none"}).encode())
        assert control.recv(100) == b"{}"
        (cpu,) = (pid for pid in all_pids() if show(pid).startswith(f"enclave-cc-simulated-cpu {short_path.name}"))
        stat = Path(f"/proc/{cpu}/ksm_stat").read_text()
        if "ksm_mergeable" in stat:
            assert "ksm_mergeable: no" in stat
        control.close()
        assert os.read(life, 1) == b""
    os.close(life)


@pytest.fixture
def own_code(short_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same code at a place of the test's own: a server is asked by that, and one of a snapshotter may run here."""
    place = short_path / "site"
    place.mkdir()
    (place / "enclave_cc").symlink_to(Path(enclave_cc.__file__).parent)
    there = [str(place), *launcher._list_paths()[1:]]
    monkeypatch.setattr(launcher, "_list_paths", lambda: there)
    monkeypatch.setattr(fork_server, "__file__", str(place / "enclave_cc/host/shim/fork_server.py"))
    monkeypatch.setattr(fork_server, "_PACKAGES", str(place))
    monkeypatch.setattr(fork_server, "LOADED", fork_server.identify_code())


@contextmanager
def running_companion() -> Iterator[companion.Companion]:
    made = companion.Companion()
    made.start()
    try:
        wait_until(lambda: fork_server.ask("ping", (), ()))
        yield made
    finally:
        made.close()
    assert made.pid is None
    assert not fork_server.ask("ping", (), ())


@pytest.mark.usefixtures("own_code")
def test_the_companion_starts_it_anew(monkeypatch: pytest.MonkeyPatch, short_path: Path) -> None:
    monkeypatch.setattr(companion, "_LOOK", 0.1)
    monkeypatch.setattr(companion, "_PAUSE", 0.1)
    with running_companion() as made:
        first = made.pid
        assert first is not None
        os.kill(first, signal.SIGKILL)
        wait_until(lambda: made.pid not in (None, first) and fork_server.ask("ping", (), ()))
        second = made.pid
        assert second is not None
        monkeypatch.setattr(fork_server, "_DEADLINE", 0.2)
        os.kill(second, signal.SIGSTOP)
        wait_until(lambda: made.pid not in (None, second))
        monkeypatch.setattr(fork_server, "_DEADLINE", 2.0)
        wait_until(lambda: fork_server.ask("ping", (), ()))


def all_pids() -> list[int]:
    return [int(path.name) for path in Path("/proc").glob("[0-9]*")]


def show(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return ""


def test_the_launcher_starts_without_site(short_path: Path) -> None:
    program = short_path / "containerd-shim-rune-v2"
    program.write_text(launcher.make_launcher({"ENCLAVE_CC_CONFIG": "/a b"}))
    program.chmod(0o755)
    assert "Version" in subprocess.run([program, "-v"], capture_output=True, text=True, check=True).stdout
    text = program.read_text()
    assert " -IS\n" in text.split("import")[0]
    assert json.dumps("/a b").replace('"', "'") in text
    refused = subprocess.run([program, "start"], capture_output=True, text=True, check=False)
    assert refused.returncode == 1 and "-namespace" in refused.stderr


@pytest.mark.skipif(not Path("/proc/self/ksm_stat").exists(), reason="this kernel does not tell")
def test_memory_is_offered_for_merging_by_shims_and_not_by_what_they_execute() -> None:
    program = "import os; from enclave_cc.host.shim import preloading; preloading.load_all(); "
    program += "print(open('/proc/self/ksm_stat').read(), flush=True); os.execv('/bin/cat', ['cat', '/proc/self/ksm_stat'])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=20)
    if "ksm_mergeable" not in done.stdout:
        pytest.skip("this kernel does not tell")
    ours, theirs = re.findall(r"ksm_mergeable: (\w+)", done.stdout)
    assert (ours, theirs) == ("yes", "no")
    assert "ksm_merge_any: yes" not in done.stdout
