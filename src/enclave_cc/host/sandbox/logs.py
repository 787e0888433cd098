"""A container's output on disk, in the form of the Kubernetes CRI: `TIME STREAM F|P LINE`.

Bounded: when the file is full it becomes `NAME.1`, replacing the one before. What a workload prints is the workload's
choice to show to the host.
"""

from __future__ import annotations

import os
import threading
import time
from contextlib import suppress
from pathlib import Path

from enclave_cc.errors import EnvironmentFault


class LogWriter:
    """Appends whole lines, and at the end what stands without one. Threads may write different streams."""

    def __init__(self, path: Path, *, limit: int) -> None:
        """`limit` in bytes over both files; 0 is none. Raises `EnvironmentFault`."""
        self._path = path
        self._limit = limit // 2
        self._lock = threading.Lock()
        self._rest: dict[str, bytes] = {}
        self._descriptor = self._open()
        self._size = os.fstat(self._descriptor).st_size

    def write(self, stream: str, data: bytes) -> None:
        """`stream` is "stdout" or "stderr". A full disk loses log lines, never the workload's output to its reader."""
        with self._lock:
            lines = (self._rest.pop(stream, b"") + data).split(b"\n")
            rest = lines.pop()
            if len(rest) > 16384:  # as CRI does: a long line is written in parts
                self._append(stream, [rest], b"P")
            elif rest:
                self._rest[stream] = rest
            if lines:
                self._append(stream, lines, b"F")

    def close(self) -> None:
        with self._lock:
            for stream, rest in self._rest.items():
                self._append(stream, [rest], b"P")
            self._rest.clear()
            os.close(self._descriptor)

    def _append(self, stream: str, lines: list[bytes], tag: bytes) -> None:
        now = time.time_ns()
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now // 10**9)).encode() + b".%09dZ " % (now % 10**9)
        head = stamp + stream.encode() + b" " + tag + b" "
        text = b"".join(head + line + b"\n" for line in lines)
        try:
            if self._limit and self._size + len(text) > self._limit:
                self._turn_over()
            if os.write(self._descriptor, text) == len(text):
                self._size += len(text)
            else:  # no line is left in half, which the next one would be taken for the end of
                os.ftruncate(self._descriptor, self._size)
        except (OSError, EnvironmentFault):
            return

    def _turn_over(self) -> None:
        older = self._path.with_name(self._path.name + ".1")
        self._path.replace(older)
        try:
            fresh = self._open()
        except EnvironmentFault:
            older.replace(self._path)
            raise
        os.close(self._descriptor)
        self._descriptor, self._size = fresh, 0

    def _open(self) -> int:
        try:
            return os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise EnvironmentFault("environment", f"the log {self._path}: {error.strerror}") from error


class LogReader:
    """Reads a log from its oldest entry on, then what is appended, also when it becomes `NAME.1` meanwhile."""

    def __init__(self, path: Path) -> None:
        """Raises `OSError` when there is no such log."""
        self._path = path
        self._file = path.open("rb")
        self._start = b""
        with suppress(FileNotFoundError):
            self._start = path.with_name(path.name + ".1").read_bytes()

    def read(self) -> bytes:
        """What came since the last call."""
        data, self._start = self._start + self._file.read(), b""
        try:
            moved = self._path.stat().st_ino != os.fstat(self._file.fileno()).st_ino
            fresh = self._path.open("rb") if moved else None
        except FileNotFoundError:  # between its move and the making of a new one, or at the pod's end
            fresh = None
        if fresh is not None:
            data += self._file.read()  # what was appended between the two
            self._file.close()
            self._file = fresh
            data += fresh.read()
        return data

    def close(self) -> None:
        self._file.close()


def parse_line(line: bytes) -> tuple[str, str, bytes] | None:
    """(time, stream, text) of an entry; the text has its newline unless the line was cut in parts.

    None for a line that was cut off while it was written.
    """
    parts = line.split(b" ", 3)
    if len(parts) != 4 or parts[1] not in (b"stdout", b"stderr") or parts[2] not in (b"F", b"P"):
        return None
    return parts[0].decode("ascii", "replace"), parts[1].decode(), parts[3] + (b"\n" if parts[2] == b"F" else b"")
