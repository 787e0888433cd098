"""From launch statement and exec request to processes; environments; settings; arguments; the status file."""

from __future__ import annotations

import os
import resource
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from enclave_cc.enclave.boot import __main__ as boot
from enclave_cc.enclave.boot import launch, process, settings
from enclave_cc.enclave.boot.process import ProcessSpec
from enclave_cc.enclave.boot.status import StatusBoard
from enclave_cc.errors import EnclaveCcError, EnvironmentFault, PeerError, UsageError
from enclave_cc.wire.control.message import ExecRequest
from enclave_cc.wire.control.status import State, Status
from enclave_cc.wire.launch.limits import Rlimit
from enclave_cc.wire.launch.mounts import Volume
from enclave_cc.wire.launch.statement import LaunchStatement

STATEMENT = LaunchStatement(
    image="registry.example/app:1",
    manifest_digest="sha256:" + "0" * 64,
    container_id="c1",
    args=("app", "-v"),
    env=("A=1",),
    cwd="/srv",
    user="bob",
    groups=("audio",),
    hostname="box",
    volumes=(Volume("v", "/data", True),),
    files=("hosts",),
    scratch=("/var/tmp",),
    terminal=True,
    capabilities=("CAP_CHOWN",),
    no_new_privileges=True,
    rlimits=(Rlimit("RLIMIT_NOFILE", 10, 2**64 - 1),),
    read_only_root=True,
    allow_exec=True,
    stop_signal=2,
)


def test_a_statement_becomes_a_launch() -> None:
    plan = launch.interpret(STATEMENT)
    assert plan.process == ProcessSpec(
        args=("app", "-v"),
        env=("A=1",),
        cwd="/srv",
        user="bob",
        groups=("audio",),
        capabilities=1,
        no_new_privileges=True,
        rlimits=((resource.RLIMIT_NOFILE, 10, resource.RLIM_INFINITY),),
        terminal=True,
    )
    assert (plan.view.volumes, plan.view.files, plan.view.scratch) == ((Volume("v", "/data", True),), ("hosts",), ("/var/tmp",))
    assert (plan.view.read_only_root, plan.hostname, plan.allow_exec, plan.stop_signal) == (True, "box", True, 2)
    assert launch.interpret(replace(STATEMENT, hostname="")).hostname is None


@pytest.mark.parametrize(
    "change", [{"capabilities": ("CAP_FLY",)}, {"rlimits": (Rlimit("RLIMIT_JOY", 0, 0),)}, {"args": ("a\0b",)}, {"user": "b\0b"}]
)
def test_statements_that_cannot_be_carried_out(change: dict[str, object]) -> None:
    with pytest.raises(PeerError) as caught:
        launch.interpret(replace(STATEMENT, **change))  # type: ignore[arg-type]
    assert caught.value.code == "launch-failed"


def test_an_exec_takes_from_the_statement_what_it_does_not_name() -> None:
    plan = launch.interpret(STATEMENT)
    same = plan.make_exec(ExecRequest("e", ("id",)))
    assert same == replace(plan.process, args=("id",), terminal=False)
    other = plan.make_exec(ExecRequest("e", ("id",), ("A=2",), "/", "0", True, 3, 4))
    assert (other.env, other.cwd, other.user, other.terminal, other.rows, other.columns) == (("A=1", "A=2"), "/", "0", True, 3, 4)
    assert (other.capabilities, other.no_new_privileges, other.rlimits) == (1, True, plan.process.rlimits)


def test_environment() -> None:
    spec = ProcessSpec(args=("x",), env=("A=1", "B==", "A=2", "HOME="))
    assert process.make_environment(spec, "/home/bob") == {"PATH": process.DEFAULT_PATH, "A": "2", "B": "=", "HOME": "/home/bob"}
    spec = ProcessSpec(args=("x",), env=("HOME=/x", "PATH=/y", "TERM=vt100"), terminal=True)
    assert process.make_environment(spec, "/home/bob") == {"PATH": "/y", "HOME": "/x", "TERM": "vt100"}
    assert process.make_environment(ProcessSpec(args=("x",), terminal=True), "/")["TERM"] == "xterm"


@pytest.mark.parametrize("members", [{"args": ()}, {"args": ("",)}, {"cwd": "x"}, {"env": ("A",)}])
def test_processes_that_are_none(members: dict[str, object]) -> None:
    with pytest.raises(PeerError):
        ProcessSpec(**{"args": ("x",), **members})  # type: ignore[arg-type]


def test_a_child_finds_no_modules() -> None:
    """In a process of its own, as it cannot be undone."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            process._forbid_imports()
            sys.modules.pop("colorsys", None)
            try:
                import colorsys  # noqa: F401
            except ImportError:
                code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def _write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def test_settings(tmp_path: Path) -> None:
    loaded = settings.load_settings(_write(tmp_path / "a", 'tee = "simulated"\nmount_deadline = 5\n'))
    assert loaded == settings.Settings("simulated", 5, 60)
    assert settings.load_settings(_write(tmp_path / "b", "")).tee == "refuse"


@pytest.mark.parametrize(
    "text", ["tee = 1", "x", 'te = "simulated"', "mount_deadline = 0", "start_deadline = true", "start_deadline = 1.5"]
)
def test_settings_that_are_none(tmp_path: Path, text: str) -> None:
    with pytest.raises(UsageError) as caught:
        settings.load_settings(_write(tmp_path / "a", text))
    assert caught.value.code == "bad-config"


def test_files_that_are_not_there(tmp_path: Path) -> None:
    for load in (settings.load_settings, settings.load_agent_identity):
        with pytest.raises(EnvironmentFault):
            load(str(tmp_path / "none"))
    with pytest.raises(UsageError):
        settings.load_agent_identity(_write(tmp_path / "i", "{}"))


def test_arguments() -> None:
    assert boot._parse(["--container", "c"]) == boot.Options("c", boot.HANDOVER_DEADLINE)
    assert boot._parse(["--handover-deadline=2.5", "--container=c"]) == boot.Options("c", 2.5)
    for wrong in ([], ["c"], ["--container"], ["--container", ""], ["--container", "c", "--x", "1"], ["-h"]):
        with pytest.raises(UsageError):
            boot._parse(wrong)
    for deadline in ("0", "-1", "nan", "inf", "x", "86401"):
        with pytest.raises(UsageError):
            boot._parse(["--container", "c", "--handover-deadline", deadline])


def test_the_status_file_is_replaced_whole(tmp_path: Path) -> None:
    board = StatusBoard(str(tmp_path), "c1")
    path = tmp_path / "status.json"
    assert Status.parse(path.read_bytes()).state is State.STARTING
    before = path.stat().st_ino
    board.reach("settings")
    assert path.stat().st_ino != before
    board.run()
    assert set(Status.parse(path.read_bytes()).stages) == {"settings", "running"}
    board.exit(3)
    assert Status.parse(path.read_bytes()).exit_code == 3
    board.fail(PeerError("launch-denied", "no"), 54)
    found = Status.parse(path.read_bytes())
    assert (found.state, found.exit_code) == (State.ERROR, 54)
    assert found.error is not None
    assert found.error.code == "launch-denied"
    assert [p.name for p in tmp_path.iterdir()] == ["status.json"]


def test_the_status_file_follows_no_link(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    directory = tmp_path / "d"
    directory.mkdir()
    (directory / "status.json").symlink_to(victim)
    (directory / "status.json.new").symlink_to(victim)
    StatusBoard(str(directory), "c1")
    assert victim.read_text() == "precious"
    assert Status.parse((directory / "status.json").read_bytes()).container_id == "c1"


def test_a_status_that_cannot_be_written_stops_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    board = StatusBoard(str(tmp_path / "gone"), "c1")
    board.run()
    assert board.status.state is State.RUNNING
    assert "cannot be written" in capfd.readouterr().err


def test_errors_of_the_start_are_coded() -> None:
    with pytest.raises(EnclaveCcError) as caught:
        boot.open_platform("refuse")
    assert caught.value.exit == 10
