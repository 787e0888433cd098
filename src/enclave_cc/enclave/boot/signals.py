"""Signals of boot init: before the workload runs they end the start, afterwards they are the workload's."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from types import FrameType

ENDING = frozenset({signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM})
# Raised by the kernel for faults of boot init's own; catching them would loop.
_FAULTS = frozenset({signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGABRT, signal.SIGSYS, signal.SIGTRAP})
_UNCATCHABLE = frozenset({signal.SIGKILL, signal.SIGSTOP})


@contextlib.contextmanager
def blocked() -> Iterator[None]:
    """No signal arrives inside. For a fork: one that reached the child before `reset` would be told to the parent."""
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def reset() -> None:
    """In a child: default actions (for SIGPIPE and SIGXFSZ too, which Python ignores), nothing blocked, nothing noted."""
    signal.set_wakeup_fd(-1)
    for number in signal.valid_signals():
        with contextlib.suppress(OSError, ValueError):  # KILL, STOP and the C library's own
            signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


class Terminated(BaseException):
    """A signal of `ENDING` arrived before the workload ran."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class SignalPipe:
    """Catches every signal that can be forwarded. As PID 1 boot init gets only signals that it catches.

    `receive` returns what arrived; while `interrupting`, a signal of `ENDING` raises `Terminated` where the main
    thread is.
    """

    def __init__(self) -> None:
        self.interrupting = True
        self._reader, self._writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        for number in signal.valid_signals() - _FAULTS - _UNCATCHABLE:
            with contextlib.suppress(OSError, ValueError):  # 32 and 33 are the C library's
                signal.signal(number, self._note)

    def fileno(self) -> int:
        return self._reader

    def receive(self) -> list[int]:
        """The numbers of the signals since the last call, oldest first."""
        numbers = bytearray()
        with contextlib.suppress(BlockingIOError):
            while chunk := os.read(self._reader, 4096):
                numbers += chunk
        return list(numbers)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if self.interrupting and number in ENDING:
            raise Terminated(number)
