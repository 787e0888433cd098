"""A container as containerd sees it: the task, its execs, and the order in which their ends are told.

No exit is told before the start it belongs to, and the task's own after those of its execs.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from abc import abstractmethod
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from enclave_cc.errors import EnclaveCcError, EnvironmentFault, UsageError, foreign
from enclave_cc.host.shim.processes import Exit, Process
from enclave_cc.host.shim.states import Event, State
from enclave_cc.host.shim.stdio import Names, Streams
from enclave_cc.record import record
from enclave_cc.wire.pb import shim_events, task

if TYPE_CHECKING:
    from enclave_cc.host.sandbox.pod import Running
    from enclave_cc.host.shim.sandbox import Sandbox


@record
class Asked:
    """What the request to create a task said. `spec`: the bundle's OCI specification."""

    id: str
    bundle: Path
    names: Names
    rootfs: tuple[task.Mount, ...]
    spec: Mapping[str, Any]


class Container(Process):
    """Base of `PauseContainer` and `AppContainer`. `running` is set once its init is there."""

    def __init__(self, sandbox: Sandbox, asked: Asked, runc_id: str) -> None:
        super().__init__(asked.id, asked.id, asked.names)
        self.sandbox = sandbox
        self.asked = asked
        self.runc_id = runc_id
        self.running: Running | None = None
        self.execs: dict[str, Process] = {}
        self._guard = threading.RLock()
        self._busy = 0  # starts under way: what ends meanwhile is told after them
        self._ended: list[tuple[Process, int]] = []
        self._init_exit: int | None = None
        self._oom_kills = 0

    # --- life

    @abstractmethod
    def create(self) -> None:
        """Makes the container; its process waits for `start`. Raises coded errors, and then nothing is left of it."""

    @abstractmethod
    def let_go(self) -> None:
        """The work of `start`: returns when the workload runs. Raises coded errors."""

    @abstractmethod
    def make_exec(self, identifier: str, names: Names, process: Mapping[str, Any]) -> Process: ...

    def start(self) -> None:
        self.advance(Event.START)
        with self._guard:
            self._busy += 1
        try:
            self.let_go()
            with self._guard:
                if self.state is State.STARTING:
                    self.advance(Event.RUN)
                    self.publish(shim_events.TaskStart(self.id, self.pid))
                    self.sandbox.note_running(self)
        except BaseException:
            self._end_init()
            raise
        finally:
            with self._guard:
                self._busy -= 1
            self._settle()

    def add_exec(self, identifier: str, names: Names, process: Mapping[str, Any]) -> None:
        """Raises `UsageError`: "already-exists", "wrong-state"."""
        with self._guard:
            if identifier in self.execs or identifier == self.id:
                raise UsageError("already-exists", f"there is an exec {foreign(identifier)}")
            if self.state is not State.RUNNING:
                raise UsageError("wrong-state", "the container does not run")
            entry = self.execs[identifier] = self.make_exec(identifier, names, process)
            entry.advance(Event.CREATE)
            self.publish(shim_events.TaskExecAdded(self.id, identifier))

    def start_exec(self, entry: Process) -> None:
        """Raises coded errors; the exec is over then."""
        with self._guard:
            if self._init_exit is not None:
                raise UsageError("wrong-state", "the container's process has ended")
            entry.advance(Event.START)
            self._busy += 1
        try:
            entry.start()
            with self._guard:
                entry.advance(Event.RUN)
                self.publish(shim_events.TaskExecStarted(self.id, entry.id, entry.pid))
        except EnclaveCcError as error:
            self.exec_ended(entry, _exit_code_of(error))
            raise
        finally:
            with self._guard:
                self._busy -= 1
            self._settle()

    def find(self, exec_id: str) -> Process:
        """Raises `UsageError("not-found")`."""
        if not exec_id:
            return self
        with self._guard:
            entry = self.execs.get(exec_id)
        if entry is None:
            raise UsageError("not-found", f"there is no exec {foreign(exec_id)}")
        return entry

    def delete_exec(self, exec_id: str) -> Process:
        """Raises `UsageError`: "not-found", "wrong-state" while it runs."""
        entry = self.find(exec_id)
        if entry.state not in (State.STOPPED, State.CREATED):
            raise UsageError("wrong-state", "the exec still runs")
        with self._guard:
            self.execs.pop(exec_id, None)
        entry.close_streams()
        return entry

    # --- ends

    def watch_init(self, running: Running) -> None:
        with self._guard:
            self.running = running
            self.pid = running.pid
        self.sandbox.reaper.watch(running.pidfd, self._on_init_exit)
        self.sandbox.watch_memory(self)

    def exec_ended(self, entry: Process, status: int) -> None:
        """Any thread may tell; the event waits for the start that it belongs to."""
        with self._guard:
            self._ended.append((entry, status))
        self._settle()

    def note_oom(self) -> None:
        """Tells containerd of processes that the kernel killed for want of memory, each once."""
        with self._guard:
            count = self.sandbox.count_oom_kills(self)
            if count > self._oom_kills:
                self._oom_kills = count
                self.publish(shim_events.TaskOOM(self.id))

    def publish(self, event: shim_events.Event) -> None:
        self.sandbox.publisher.publish(event)

    def _on_init_exit(self) -> None:
        running = self.running
        assert running is not None  # noqa: S101 - it is watched
        status = self.sandbox.wait_exit(running)
        self.note_oom()
        with self._guard:
            self._init_exit = status
            if self.exit is None:
                self.exit = Exit(status, time.time_ns())
        self.on_exit(status)
        self._settle()

    def on_exit(self, status: int) -> None:
        """The init has ended, and nobody was told yet."""

    def _settle(self) -> None:
        """Tells what can be told by now."""
        with self._guard:
            if self._busy:
                return
            ended, self._ended = self._ended, []
            for entry, status in ended:
                if entry.state is not State.STOPPED:
                    entry.tell_exit(status, self.publish)
            if self._init_exit is None or self.state in (State.STOPPED, State.CREATING):
                return
            if any(entry.state in (State.STARTING, State.RUNNING) for entry in self.execs.values()):
                return  # they die with the init, and are told first
            self.tell_exit(self._init_exit, self.publish)

    def _end_init(self) -> None:
        """After a start that failed: nothing of it may run on."""
        running = self.running
        if running is not None and self._init_exit is None:
            with suppress(OSError):
                signal.pidfd_send_signal(running.pidfd, signal.SIGKILL)

    # --- what both kinds do alike

    def kill(self, number: int) -> None:
        """To the init. Raises `UsageError("not-found")` when it has ended."""
        self.require_alive()
        running = self.running
        if running is None or self._init_exit is not None:
            raise UsageError("not-found", f"process {foreign(self.id)} has ended already")
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(running.pidfd, number)

    def list_pids(self) -> dict[int, str]:
        """Each process with the exec that it is, if it is one; of an ended container its first process, until it is deleted.

        A restarted containerd (1.7 and newer) takes a container without processes for one that was never made, deletes it,
        and tells 255 instead of the exit code.
        """
        known = {entry.pid: entry.id for entry in list(self.execs.values())}
        found = {pid: known.get(pid, "") for pid in sorted(self.sandbox.list_processes(self))}
        return found or ({self.pid: ""} if self.exit is not None and self.pid else {})

    def pause(self) -> None:
        with self._guard:
            if self.state is not State.RUNNING:
                raise UsageError("wrong-state", "the container does not run")
        self.sandbox.runc.pause(self.runc_id)
        with self._guard:
            self.advance(Event.PAUSE)
            self.publish(shim_events.TaskPaused(self.id))

    def resume(self) -> None:
        with self._guard:
            if self.state is not State.PAUSED:
                raise UsageError("wrong-state", "the container is not paused")
        self.sandbox.runc.resume(self.runc_id)
        with self._guard:
            self.advance(Event.RESUME)
            self.publish(shim_events.TaskResumed(self.id))

    def update(self, resources: bytes) -> None:
        """Raises `UsageError`, `EnvironmentFault`."""
        try:
            members = json.loads(resources)
        except ValueError as error:
            raise UsageError("usage", "the resources are not JSON") from error
        members.pop("devices", None)
        self.sandbox.runc.update(self.runc_id, json.dumps(members).encode())


class PauseContainer(Container):
    """The sandbox's own: containerd's specification and rootfs as they are; no secret is near it."""

    def create(self) -> None:
        self.streams = self.sandbox.open_streams(self.names)
        try:
            self.sandbox.mount_rootfs(self.asked)
            running = self.sandbox.start_bundle(self, self.streams.stdio)
        finally:
            self.streams.release()
        self.watch_init(running)
        self.advance(Event.CREATE)

    def let_go(self) -> None:
        self.sandbox.runc.start(self.runc_id)

    def make_exec(self, identifier: str, names: Names, process: Mapping[str, Any]) -> Process:
        return PauseExec(self, identifier, names, process)


class PauseExec(Process):
    """A process beside pause, by runc: for people who look into a pod's namespaces."""

    def __init__(self, container: Container, identifier: str, names: Names, process: Mapping[str, Any]) -> None:
        if names.terminal:
            raise UsageError("wrong-state", "an exec in the sandbox itself gets no terminal")
        super().__init__(container.id, identifier, names)
        self._owner = container
        self._process = process
        self._pidfd = -1

    def start(self) -> None:
        sandbox = self._owner.sandbox
        self.streams = sandbox.open_streams(self.names)
        try:
            self.pid = sandbox.execute(self._owner, self._process, self.streams.stdio)
        finally:
            self.streams.release()
        self._pidfd = os.pidfd_open(self.pid)
        sandbox.reaper.watch(self._pidfd, self._on_exit)

    def kill(self, number: int) -> None:
        self.require_alive()
        if self._pidfd >= 0:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)

    def _on_exit(self) -> None:
        os.close(self._pidfd)
        self._pidfd = -1
        status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        self._owner.exec_ended(self, 128 - status if status < 0 else status)


def _exit_code_of(error: EnclaveCcError) -> int:
    code = getattr(error, "exit_code", None)
    return code if isinstance(code, int) else error.exit


def require_streams(streams: Streams | None) -> Streams:
    if streams is None:
        raise EnvironmentFault("internal", "the process has no streams")
    return streams
