"""What tasks and execs have in common: a state, an exit that is told once and in order, and those who wait for it."""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable

from enclave_cc.errors import EnvironmentFault, UsageError
from enclave_cc.host.shim import states
from enclave_cc.host.shim.states import Event, State
from enclave_cc.host.shim.stdio import Names, Streams
from enclave_cc.record import record
from enclave_cc.wire.pb import shim_events, task

KILLED_EXIT = 137


@record
class Exit:
    """`at`: nanoseconds since 1970."""

    status: int
    at: int


class Process(ABC):
    """One process of a container. Its methods may be called from any thread; none holds a lock while it waits."""

    def __init__(self, container: str, identifier: str, names: Names) -> None:
        self.container = container
        self.id = identifier
        self.names = names
        self.pid = 0
        self.streams: Streams | None = None
        self.exit: Exit | None = None
        self._state = State.CREATING
        self._changed = threading.Condition()

    @property
    def state(self) -> State:
        return self._state

    def advance(self, event: Event) -> None:
        """Raises `UsageError("wrong-state")`."""
        with self._changed:
            self._state = states.advance(self._state, event)
            self._changed.notify_all()

    def tell_exit(self, status: int, publish: Callable[[shim_events.TaskExit], None]) -> None:
        """Once; whoever waits is told after the event is on its way."""
        with self._changed:
            if self._state is State.STOPPED:
                return
            exit_ = self.exit or Exit(status, time.time_ns())
            at = task.Timestamp.of(exit_.at)
            publish(shim_events.TaskExit(self.container, self.id, self.pid, exit_.status, at))
            self.exit = exit_
            self._state = State.STOPPED
            self._changed.notify_all()

    def end_unmade(self) -> None:
        """After a creation that failed: no event tells of it, but whoever waits is let go."""
        with self._changed:
            self.exit = self.exit or Exit(KILLED_EXIT, time.time_ns())
            self._state = State.STOPPED
            self._changed.notify_all()

    def wait(self, deadline: float | None = None) -> Exit:
        """Raises `EnvironmentFault("deadline")`."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._state is State.STOPPED, deadline) or self.exit is None:
                raise EnvironmentFault("deadline", f"{self.id} did not end in time")
            return self.exit

    def close_streams(self) -> None:
        streams, self.streams = self.streams, None
        if streams is not None:
            streams.close()

    def close_input(self) -> None:
        if self.streams is not None:
            self.streams.close_input()

    def resize(self, rows: int, columns: int) -> None:
        """Raises `UsageError("wrong-state")` without a terminal."""
        if self.streams is None:
            raise UsageError("wrong-state", "there is no terminal")
        self.streams.resize(rows, columns)

    @abstractmethod
    def start(self) -> None:
        """Lets it go; returns when it runs. Raises coded errors."""

    @abstractmethod
    def kill(self, number: int) -> None:
        """Raises `UsageError("not-found")` when it has ended."""

    def require_alive(self) -> None:
        if self._state is State.STOPPED:
            raise UsageError("not-found", f"process {self.id} has ended already")
