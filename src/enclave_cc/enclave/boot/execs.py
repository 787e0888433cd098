"""The processes that exec adds to the workload, from request to exit code."""

from __future__ import annotations

import contextlib
import os
import signal
import time

from enclave_cc.enclave.boot import terminal
from enclave_cc.enclave.boot.control import Connection
from enclave_cc.enclave.boot.launch import Launch
from enclave_cc.enclave.boot.process import Child, start_exec
from enclave_cc.errors import EnclaveCcError, EnvironmentFault, PeerError, UsageError
from enclave_cc.wire.control import message

EXEC_LIMIT = 256


class Exec:
    """One process. `connection` is None once the supervisor left; `deadline` (monotonic) is for reaching `execve`."""

    __slots__ = ("child", "connection", "deadline", "failed", "id", "master", "released")

    def __init__(self, identifier: str, child: Child, deadline: float, connection: Connection) -> None:
        self.id, self.child = identifier, child
        self.deadline: float | None = deadline
        self.connection: Connection | None = connection
        self.master: int | None = None
        self.released = self.failed = False


class ExecTable:
    """All exec processes. Calls `watch(fd, callback)` and `unwatch(fd)` of the supervisor's loop for their channels."""

    def __init__(self, launch: Launch, start_deadline: float) -> None:
        self._launch = launch
        self._start_deadline = start_deadline
        self._by_pid: dict[int, Exec] = {}

    def start(self, request: message.ExecRequest, connection: Connection, workload: int) -> Exec:
        """Forks the process into the namespaces of `workload` (a pidfd). Raises coded errors; nothing is left then."""
        # 1. the owner allows it  2. the id is free, and not too many run  3. the descriptors are those of the form
        if not self._launch.allow_exec:
            raise PeerError("launch-denied", "the owner's launch policy does not allow exec")  # 1
        if self.find(request.id) is not None:
            raise UsageError("already-exists", f"an exec with the id {request.id} runs")  # 2
        if len(self._by_pid) >= EXEC_LIMIT:
            raise UsageError("too-large", f"{EXEC_LIMIT} execs run already")
        stdio = connection.take_fds(0 if request.terminal else message.STDIO_COUNT)  # 3
        try:
            child = start_exec(workload, self._launch.make_exec(request), stdio)
        except OSError as error:
            raise EnvironmentFault("launch-failed", f"cannot join the workload: {error.strerror}") from error
        finally:
            for fd in stdio:
                os.close(fd)
        child.channel.setblocking(False)
        entry = Exec(request.id, child, time.monotonic() + self._start_deadline, connection)
        self._by_pid[child.pid] = entry
        return entry

    def find(self, identifier: str) -> Exec | None:
        """The running exec of that id."""
        return next((entry for entry in self._by_pid.values() if entry.id == identifier), None)

    def advance(self, entry: Exec) -> bool:
        """Takes what the child has reported; False once its channel is done with."""
        while True:
            try:
                report = entry.child.read()
            except BlockingIOError:
                return True
            if report.kind == "terminal":
                entry.master = report.fd
            elif report.kind == "ready":
                entry.released = True
                entry.child.release()
            else:
                if report.kind == "failed" or not entry.released:
                    error = report.error or EnvironmentFault("launch-failed", "the exec ended before its command ran")
                    self._refuse(entry, error, report.exit_code or error.exit)
                elif entry.connection is not None:
                    entry.connection.reply(message.Started(entry.child.pid), [] if entry.master is None else [entry.master])
                entry.deadline = None
                entry.child.channel.close()
                return False

    def reap(self, pid: int, exit_code: int) -> Exec | None:
        """The exec that had `pid`, told its exit code and forgotten. Its channel must have been advanced before."""
        entry = self._by_pid.pop(pid, None)
        if entry is None:
            return None
        if entry.connection is not None and not entry.failed:
            entry.connection.reply(message.Exited(exit_code))
        if entry.master is not None:
            os.close(entry.master)
            entry.master = None
        return entry

    def at(self, pid: int) -> Exec | None:
        """The exec that has `pid`."""
        return self._by_pid.get(pid)

    def leave(self, connection: Connection) -> None:
        """The supervisor of an exec went away: its terminal hangs up, the process itself runs on."""
        for entry in self._by_pid.values():
            if entry.connection is connection:
                entry.connection = None
                if entry.master is not None:
                    os.close(entry.master)
                    entry.master = None

    def expire(self, now: float) -> None:
        """Kills what did not reach `execve` in time."""
        for entry in self._by_pid.values():
            if entry.deadline is not None and entry.deadline <= now:
                entry.deadline = None
                with contextlib.suppress(ProcessLookupError):
                    os.kill(entry.child.pid, signal.SIGKILL)
                self._refuse(entry, EnvironmentFault("deadline", "the exec did not start in time"), None)

    def next_deadline(self) -> float | None:
        """The earliest deadline, on the monotonic clock."""
        return min((entry.deadline for entry in self._by_pid.values() if entry.deadline is not None), default=None)

    def resize(self, identifier: str, rows: int, columns: int) -> None:
        """Raises `UsageError` when there is no such exec or it has no terminal."""
        entry = self._require(identifier)
        if entry.master is None:
            raise UsageError("wrong-state", f"the exec {identifier} has no terminal")
        terminal.resize(entry.master, rows, columns)

    def signal(self, identifier: str, number: int) -> None:
        """Raises `UsageError` when there is no such exec."""
        os.kill(self._require(identifier).child.pid, number)  # not reaped yet, so the pid is still its own

    def _require(self, identifier: str) -> Exec:
        entry = self.find(identifier)
        if entry is None:
            raise UsageError("not-found", f"no exec with the id {identifier} runs", "Exec ids end with their process.")
        return entry

    @staticmethod
    def _refuse(entry: Exec, error: EnclaveCcError, exit_code: int | None) -> None:
        if entry.connection is not None and not entry.failed:
            entry.connection.refuse(error, exit_code)
        entry.failed = True
