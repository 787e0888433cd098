"""Standard streams and terminals between a workload and whoever watches it."""

from __future__ import annotations

import os
import select
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

_CHUNK = 1 << 16


class Pump(threading.Thread):
    """Moves bytes from `source` to `sink` (or nowhere) and shows them to `observe`, until the source ends.

    Owns `source`. A sink whose reader is gone is given up; the source is drained all the same.
    """

    def __init__(self, source: int, sink: int | None, observe: Callable[[bytes], None] | None = None) -> None:
        super().__init__(name="stream", daemon=True)
        self._source = source
        self._sink = sink
        self._observe = observe

    def run(self) -> None:
        try:
            while True:
                try:
                    data = os.read(self._source, _CHUNK)
                except OSError:  # EIO: the other side of a terminal is closed
                    return
                if not data:
                    return
                if self._sink is not None:
                    try:
                        write_all(self._sink, data)
                    except OSError:
                        self._sink = None
                if self._observe is not None:
                    self._observe(data)
        finally:
            os.close(self._source)


class InputPump(threading.Thread):
    """Moves bytes from `source` to `sink` until `stop` or the end of the source; owns neither.

    Unlike a read in a thread, it leaves nothing of the source's bytes behind that came after `stop`.
    """

    def __init__(self, source: int, sink: int) -> None:
        super().__init__(name="input", daemon=True)
        self._source = source
        self._sink = sink
        self._wake_reader, self._wake_writer = os.pipe2(os.O_CLOEXEC)

    def run(self) -> None:
        poll = select.poll()
        poll.register(self._source, select.POLLIN)
        poll.register(self._wake_reader, select.POLLIN)
        with suppress(OSError):
            while True:
                ready = {number for number, _ in poll.poll()}
                if self._wake_reader in ready:
                    return
                data = os.read(self._source, _CHUNK)
                if not data:
                    return
                write_all(self._sink, data)

    def stop(self) -> None:
        os.write(self._wake_writer, b"x")
        self.join()
        os.close(self._wake_reader)
        os.close(self._wake_writer)


class RawTerminal:
    """The user's terminal in raw mode, as long as this is entered; does nothing when `descriptor` is none.

    Without `keys` only what is shown passes as it is: Ctrl-C stays a signal where nobody reads it as a key.
    """

    def __init__(self, descriptor: int, *, keys: bool = True) -> None:
        self._descriptor = descriptor
        self._keys = keys
        self._saved: list[Any] | None = None

    def __enter__(self) -> RawTerminal:
        import termios
        import tty

        if os.isatty(self._descriptor):
            self._saved = termios.tcgetattr(self._descriptor)
            if self._keys:
                tty.setraw(self._descriptor)
            else:
                shown = termios.tcgetattr(self._descriptor)
                shown[1] &= ~termios.OPOST
                termios.tcsetattr(self._descriptor, termios.TCSADRAIN, shown)
        return self

    def __exit__(self, *_: object) -> None:
        import termios

        if self._saved is not None:
            with suppress(termios.error):
                termios.tcsetattr(self._descriptor, termios.TCSADRAIN, self._saved)
            self._saved = None


def get_size(descriptor: int) -> tuple[int, int]:
    """(rows, columns) of a terminal; (0, 0) when it is none."""
    import fcntl
    import termios

    try:
        rows, columns, _, _ = struct.unpack("4H", fcntl.ioctl(descriptor, termios.TIOCGWINSZ, bytes(8)))
    except OSError:
        return 0, 0
    return rows, columns


def write_all(descriptor: int, data: bytes) -> None:
    """Raises `OSError`; waits when the descriptor does not block."""
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(descriptor, view) :]
        except BlockingIOError:
            poll = select.poll()
            poll.register(descriptor, select.POLLOUT)
            poll.poll()
