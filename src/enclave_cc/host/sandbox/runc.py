"""A driver over the runc binary: it makes, starts, signals and deletes containers, and says why when it cannot.

runc's process is started by posix_spawn and waited for by its pidfd: nothing of ours lies between a container and its
standard streams, and the container's init process becomes our child when runc ends (we are a subreaper), so that its
exit status reaches us and nobody else.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from enclave_cc.errors import EnclaveCcError, EnvironmentFault, foreign
from enclave_cc.record import record

_PR_SET_CHILD_SUBREAPER = 36


@record
class Stdio:
    """File descriptors that the container's init gets as 0, 1 and 2."""

    stdin: int
    stdout: int
    stderr: int


def become_subreaper() -> None:
    """Containers whose runc has ended are reparented to this process. Raises `EnvironmentFault`."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise EnvironmentFault("environment", f"prctl(PR_SET_CHILD_SUBREAPER): {os.strerror(ctypes.get_errno())}")


class Runc:
    """One runc root. Container ids are unique in it."""

    def __init__(self, program: str, root: Path, *, deadline: float, systemd: bool = False) -> None:
        """`systemd`: control groups are its, and paths of them have its form."""
        self._flags = ["--systemd-cgroup"] if systemd else []
        self._program = program
        self._root = root
        self._deadline = deadline

    def run(self, container: str, bundle: Path, stdio: Stdio | None = None) -> int:
        """Creates and starts in one step; returns the init's pid. Raises `EnvironmentFault`."""
        return self._make("run", ["--detach"], container, bundle, stdio)

    def create(self, container: str, bundle: Path, stdio: Stdio | None = None) -> int:
        """Creates; the init waits for `start`. Returns its pid. Raises `EnvironmentFault`."""
        return self._make("create", [], container, bundle, stdio)

    def start(self, container: str) -> None:
        """Raises `EnvironmentFault`."""
        self._call("start", [container], self._root / f"{container}.log")

    def kill(self, container: str, signal: int, *, every: bool = False) -> None:
        """Signals the init, or with `every` each process. A container that is gone is no error."""
        try:
            self._call("kill", [*(["--all"] if every else []), container, str(signal)], self._root / f"{container}.log")
        except EnvironmentFault as fault:
            if "does not exist" not in fault.what and "not running" not in fault.what and "already finished" not in fault.what:
                raise

    def delete(self, container: str) -> None:
        """Kills what runs and removes the container, its cgroups and state. A container that is gone is no error."""
        self._call("delete", ["--force", container], self._root / f"{container}.log")
        (self._root / f"{container}.log").unlink(missing_ok=True)

    def pause(self, container: str) -> None:
        """Freezes every process of the container. Raises `EnvironmentFault`."""
        self._call("pause", [container], self._root / f"{container}.log")

    def resume(self, container: str) -> None:
        """Raises `EnvironmentFault`."""
        self._call("resume", [container], self._root / f"{container}.log")

    def update(self, container: str, resources: bytes) -> None:
        """Sets limits; `resources` is OCI `linux.resources` as JSON. Raises `EnvironmentFault`."""
        file = os.memfd_create("resources")
        try:
            os.write(file, resources)
            path = f"/proc/{os.getpid()}/fd/{file}"
            self._call("update", ["--resources", path, container], self._root / f"{container}.log")
        finally:
            os.close(file)

    def execute(self, container: str, process: Path, stdio: Stdio, *, pid_file: Path) -> int:
        """Starts one more process (OCI `process` as JSON in a file), which becomes our child; its pid.

        Raises `EnvironmentFault`.
        """
        arguments = ["--process", str(process), "--detach", "--pid-file", str(pid_file), container]
        self._call("exec", arguments, self._root / f"{container}.log", stdio=stdio)
        try:
            return int(pid_file.read_text())
        except (OSError, ValueError) as error:
            raise EnvironmentFault("runc-failed", f"runc exec did not tell the pid of its process in {container}") from error

    def state(self, container: str) -> dict[str, object]:
        """runc's state object. Raises `EnvironmentFault("not-found")` when there is no such container."""
        reader, writer = os.pipe2(os.O_CLOEXEC)
        try:
            try:
                self._call("state", [container], self._root / f"{container}.log", stdout=writer)
            except EnvironmentFault as fault:
                if "does not exist" in fault.what:
                    raise EnvironmentFault("not-found", f"there is no container {container}") from fault
                raise
            finally:
                os.close(writer)
            with os.fdopen(reader, "rb", closefd=False) as answer:
                state: dict[str, object] = json.loads(answer.read(1 << 20))
            return state
        finally:
            os.close(reader)

    def list_ids(self) -> list[str]:
        """Ids of the containers that this root knows, read from its directory: no process is started."""
        try:
            return sorted(entry.name for entry in os.scandir(self._root) if entry.is_dir())
        except FileNotFoundError:
            return []

    def _make(self, verb: str, options: list[str], container: str, bundle: Path, stdio: Stdio | None) -> int:
        pid_file = bundle / "pid"
        arguments = [*options, "--bundle", str(bundle), "--pid-file", str(pid_file), container]
        self._call(verb, arguments, bundle / "runc.log", stdio=stdio)
        try:
            return int(pid_file.read_text())
        except (OSError, ValueError) as error:
            raise EnvironmentFault("runc-failed", f"runc {verb} did not tell the pid of {container}") from error

    def _call(
        self, verb: str, arguments: Sequence[str], log: Path, *, stdio: Stdio | None = None, stdout: int | None = None
    ) -> None:
        self._root.mkdir(parents=True, exist_ok=True, mode=0o700)
        log.unlink(missing_ok=True)
        command = [self._program, "--root", str(self._root), "--log", str(log), "--log-format", "json"]
        command += [*self._flags, verb, *arguments]
        null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        try:
            streams = stdio or Stdio(null, null if stdout is None else stdout, null)
            status = run_program(command, streams, os.environ, deadline=self._deadline)
        finally:
            os.close(null)
        if status != 0:
            raise explain(verb, log)


def run_program(command: Sequence[str], stdio: Stdio, environment: Mapping[str, str], *, deadline: float) -> int:
    """Runs a program to its end with these streams; its exit status, -n when a signal ended it.

    It gets no other descriptor (all of ours close on exec). Raises `EnvironmentFault`: "missing-tool" when it is not
    there, "deadline" when it had to be killed.
    """
    actions = [(os.POSIX_SPAWN_DUP2, number, place) for place, number in enumerate(_above(stdio))]
    spares = [number for _, number, _ in actions]
    try:
        pid = os.posix_spawnp(command[0], list(command), dict(environment), file_actions=actions)
    except FileNotFoundError as error:
        raise EnvironmentFault("missing-tool", f"{command[0]} is not installed") from error
    except OSError as error:
        raise EnvironmentFault("missing-tool", f"{command[0]} does not run: {error.strerror}") from error
    finally:
        for spare in spares:
            os.close(spare)
    status = wait_child(pid, time.monotonic() + deadline)
    if status is None:
        os.kill(pid, 9)
        os.waitpid(pid, 0)
        raise EnvironmentFault("deadline", f"{Path(command[0]).name} did not end within {deadline:g} s")
    return status


def wait_child(pid: int, until: float) -> int | None:
    """The exit status of child `pid` (-n: signal), or None when it still runs at `until` (monotonic clock)."""
    descriptor = os.pidfd_open(pid)
    try:
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        if not poll.poll(max(0.0, until - time.monotonic()) * 1000):
            return None
    finally:
        os.close(descriptor)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def explain(verb: str, log: Path) -> EnclaveCcError:
    """runc's last error in `log` as a coded error."""
    what = ""
    try:
        for line in log.read_bytes()[-65536:].splitlines():
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if isinstance(entry, dict) and entry.get("level") in {"error", "fatal"}:
                what = foreign(entry.get("msg", ""))
    except OSError:
        pass
    lowered = what.lower()
    code = "runc-failed"
    if "no space left" in lowered:
        code = "disk-full"
    elif "oom" in lowered or "cannot allocate memory" in lowered:
        code = "memory-limit"
    return EnvironmentFault(code, f"runc {verb}: {what or 'failed without a word'}")


def _above(stdio: Stdio) -> list[int]:
    """Copies of the three streams above 2, so that dup2 onto 0-2 in any order loses none."""
    import fcntl

    return [fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, 3) for number in (stdio.stdin, stdio.stdout, stdio.stderr)]
