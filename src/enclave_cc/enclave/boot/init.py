"""Supervises the workload: one loop over signals, children, the control socket and deadlines.

Single-threaded and never blocking: a supervisor that hangs, a workload that floods or an exec that never starts delay
nothing else. The workload's end ends boot init, and with it, as it is PID 1, everything in the container.
"""

from __future__ import annotations

import contextlib
import gc
import os
import select
import signal
import time
from collections.abc import Callable, Sequence

from enclave_cc.enclave.boot import log, terminal
from enclave_cc.enclave.boot.control import Connection, Listener
from enclave_cc.enclave.boot.execs import Exec, ExecTable
from enclave_cc.enclave.boot.launch import Launch
from enclave_cc.enclave.boot.process import Child, start_workload
from enclave_cc.enclave.boot.signals import ENDING, SignalPipe
from enclave_cc.enclave.boot.status import StatusBoard
from enclave_cc.errors import EnclaveCcError, EnvironmentFault, UsageError
from enclave_cc.wire.control import message
from enclave_cc.wire.control.status import State

_TICK_LIMIT = 60.0


class Supervisor:
    """Starts the workload of `launch` at the mount `root` and stays until it ended.

    `server_pid` is the process without which the rootfs is dead; None when nothing serves it. `stdio` are the
    workload's descriptors, closed here once it has them. `find_cause` knows why the rootfs could not be read, if so.
    """

    def __init__(
        self,
        launch: Launch,
        root: str,
        *,
        board: StatusBoard,
        signals: SignalPipe,
        listener: Listener,
        stdio: Sequence[int],
        server_pid: int | None,
        start_deadline: float,
        find_cause: Callable[[], EnclaveCcError | None] = lambda: None,
    ) -> None:
        self._launch, self._root, self._board = launch, root, board
        self._signals, self._listener, self._stdio = signals, listener, stdio
        self._server_pid, self._find_cause = server_pid, find_cause
        self._start_deadline = start_deadline
        self._poll = select.poll()
        self._callbacks: dict[int, Callable[[], None]] = {}
        self._connections: dict[int, Connection] = {}
        self._waiting: list[tuple[Connection, message.TerminalRequest]] = []
        self._execs = ExecTable(launch, start_deadline)
        self._workload: Child | None = None
        self._pidfd = -1
        self._master: int | None = None
        self._ready = self._fetched = self._released = False
        self._deadline: float | None = None
        self._failure: EnclaveCcError | None = None
        self._failure_exit = 0
        self._exit_code: int | None = None

    def run(self) -> int:
        """Boot init's exit code; the status has been written. Raises coded errors of the start only."""
        self._signals.interrupting = False
        self._signals.receive()  # what came before there was a workload is not for it
        self._watch(self._signals.fileno(), self._on_signals)
        self._watch(self._listener.fileno(), self._on_connection)
        self._start()
        self._reap()
        try:
            while self._exit_code is None:
                self._turn()
        finally:
            self._kill_workload()
            for connection in list(self._connections.values()):
                self._close(connection)
            self._listener.close()
        if self._failure is not None:
            code = self._failure_exit or self._failure.exit
            self._board.fail(self._failure, code)
            return code
        self._board.exit(self._exit_code)
        return self._exit_code

    def _start(self) -> None:
        try:
            child = start_workload(self._root, self._launch.view, self._launch.hostname, self._launch.process, self._stdio)
        except OSError as error:
            raise EnvironmentFault("launch-failed", f"cannot fork the workload: {error.strerror}") from error
        finally:
            for fd in self._stdio:
                os.close(fd)
        self._workload = child
        self._pidfd = os.pidfd_open(child.pid)
        self._deadline = time.monotonic() + self._start_deadline
        self._board.reach("spawn")
        child.channel.setblocking(False)
        self._watch(child.channel.fileno(), self._on_workload_report)

    def _turn(self) -> None:
        events = self._poll.poll(self._timeout())
        if not events:
            self._reap()  # should a SIGCHLD have been lost in a full pipe
        for fd, _ in events:
            callback = self._callbacks.get(fd)
            if callback is not None:  # None: an earlier callback of this turn ended it
                callback()
        self._expire()

    # the workload

    def _on_workload_report(self) -> None:
        child = self._workload
        while child is not None and child.channel.fileno() >= 0:
            try:
                report = child.read()
            except BlockingIOError:
                return
            if report.kind == "terminal":
                self._master = report.fd
                waiting, self._waiting = self._waiting, []
                for connection, request in waiting:
                    self._give_terminal(connection, request)
            elif report.kind == "ready":
                self._ready = True
                self._release()
            else:
                self._unwatch(child.channel.fileno())
                child.channel.close()
                self._deadline = None
                if report.error is not None:
                    self._fail(report.error, report.exit_code)
                elif self._released and self._failure is None:
                    self._board.run()

    def _release(self) -> None:
        # With a terminal only once somebody reads it: what a short workload printed would be lost with the master.
        if self._workload is None or not self._ready or self._released or (self._launch.process.terminal and not self._fetched):
            return
        self._released = True
        gc.enable()  # off since the first instruction, for the imports (start.py)
        self._deadline = time.monotonic() + self._start_deadline
        self._workload.release()

    def _fail(self, error: EnclaveCcError, exit_code: int = 0) -> None:
        if self._failure is None:
            # A start that fails of a broken block shows itself as an I/O error of anything.
            cause = self._find_cause() if self._board.status.state is State.STARTING else None
            self._failure, self._failure_exit = (error, exit_code) if cause is None else (cause, 0)
        self._kill_workload()

    def _kill_workload(self) -> None:
        self._kill(signal.SIGKILL)  # its death is that of its PID namespace: every exec goes with it

    # signals and children

    def _on_signals(self) -> None:
        for number in self._signals.receive():
            if number == signal.SIGCHLD:
                self._reap()
            elif self._board.status.state is State.RUNNING:
                self._kill(number)
            elif number in ENDING:  # the child would not heed it: PID 1 ignores what it has no handler for
                self._fail(EnvironmentFault("app-died", f"signal {number} ended it before the workload ran"), 128 + number)

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            code = os.waitstatus_to_exitcode(status)
            code = 128 - code if code < 0 else code
            entry = self._execs.at(pid)
            if self._workload is not None and pid == self._workload.pid:
                self._on_workload_report()
                if not self._released and self._failure is None:
                    self._failure = EnvironmentFault("launch-failed", "the workload's process ended before its command ran")
                self._workload = None
                os.close(self._pidfd)
                self._exit_code = code
            elif entry is not None:
                self._advance(entry)
                self._execs.reap(pid, code)
                if entry.connection is not None:
                    self._close(entry.connection)
            elif pid == self._server_pid:
                self._server_pid = None
                log.write("error", "the rootfs server ended", exit_code=code)
                self._fail(EnvironmentFault("app-died", "the server of the encrypted rootfs ended"))

    def _advance(self, entry: Exec) -> None:
        fd = entry.child.channel.fileno()
        if fd >= 0 and not self._execs.advance(entry):
            self._unwatch(fd)

    # the control socket

    def _on_connection(self) -> None:
        connection = self._listener.accept(len(self._connections))
        if connection is not None:
            self._connections[connection.fileno()] = connection
            self._watch(connection.fileno(), lambda: self._on_request(connection))

    def _on_request(self, connection: Connection) -> None:
        try:
            request = connection.receive()
            if request is not None and not self._answer(connection, request):
                return
        except EOFError:
            pass
        except EnclaveCcError as error:
            connection.refuse(error)
        else:
            if request is None:
                return
        self._close(connection)

    def _answer(self, connection: Connection, request: message.Request) -> bool:
        """True when the connection is done with."""
        match request:
            case message.ExecRequest():
                entry = self._execs.start(request, connection, self._require_running())
                self._watch(entry.child.channel.fileno(), lambda: self._advance(entry))
                return False
            case message.TerminalRequest():
                if not self._launch.process.terminal:
                    raise UsageError("wrong-state", "the workload has no terminal")
                if self._master is None:
                    self._waiting.append((connection, request))
                    return False
                self._give_terminal(connection, request)
                return False  # closed there
            case message.StateRequest():
                connection.reply(message.StateReply(self._board.status))
            case message.SignalRequest(number, None):
                self._require_running()
                self._kill(number)
                connection.reply(message.Done())
            case message.SignalRequest(number, str(target)):
                self._execs.signal(target, number)
                connection.reply(message.Done())
            case message.StopRequest():
                self._require_running()
                self._kill(self._launch.stop_signal)
                connection.reply(message.Done())
            case message.ResizeRequest(rows, columns, None):
                if self._master is None:
                    raise UsageError("wrong-state", "the workload has no terminal")
                terminal.resize(self._master, rows, columns)
                connection.reply(message.Done())
            case message.ResizeRequest(rows, columns, str(target)):
                self._execs.resize(target, rows, columns)
                connection.reply(message.Done())
        return True

    def _give_terminal(self, connection: Connection, request: message.TerminalRequest) -> None:
        if self._master is not None:
            terminal.resize(self._master, request.rows, request.columns)
            if connection.reply(message.Done(), [self._master]):
                self._fetched = True
                self._release()
        self._close(connection)

    def _require_running(self) -> int:
        if self._workload is None or self._board.status.state is not State.RUNNING:
            raise UsageError("wrong-state", "the workload does not run")
        return self._pidfd

    def _kill(self, number: int) -> None:
        if self._workload is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._workload.pid, number)

    def _close(self, connection: Connection) -> None:
        if self._connections.pop(connection.fileno(), None) is not None:
            self._unwatch(connection.fileno())
            self._waiting = [pair for pair in self._waiting if pair[0] is not connection]
            self._execs.leave(connection)
            connection.close()

    # the loop

    def _watch(self, fd: int, callback: Callable[[], None]) -> None:
        self._callbacks[fd] = callback
        self._poll.register(fd, select.POLLIN)

    def _unwatch(self, fd: int) -> None:
        if self._callbacks.pop(fd, None) is not None:
            self._poll.unregister(fd)

    def _timeout(self) -> int:
        deadlines = [connection.deadline for connection in self._connections.values()]
        known = [d for d in (*deadlines, self._deadline, self._execs.next_deadline()) if d is not None]
        left = min(known) - time.monotonic() if known else _TICK_LIMIT
        return max(0, min(int(left * 1000) + 1, int(_TICK_LIMIT * 1000)))

    def _expire(self) -> None:
        now = time.monotonic()
        for connection in list(self._connections.values()):
            if connection.deadline is not None and connection.deadline <= now:
                connection.refuse(EnvironmentFault("deadline", "the control request did not arrive in time"))
                self._close(connection)
        self._execs.expire(now)
        if self._deadline is not None and self._deadline <= now:
            self._deadline = None
            unfetched = self._ready and not self._released
            waited = "the supervisor did not fetch the terminal" if unfetched else "the workload did not start"
            self._fail(EnvironmentFault("deadline", f"{waited} in time"))
