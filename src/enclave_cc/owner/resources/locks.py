"""Locks that hold between threads and between processes of one machine: flock(2) on one of 64 files.

A lock ends with its descriptor, so that nothing is left of a killed process.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from enclave_cc.errors import EnvironmentFault, explain_os_error

_FILES = 64


class PathLocks:
    """One lock for each name; a few names share one."""

    def __init__(self, directory: Path, *, deadline: float = 10.0) -> None:
        """`deadline`: the longest wait for a lock, in seconds."""
        self._directory = directory
        self._deadline = deadline

    @contextmanager
    def hold(self, name: str) -> Iterator[None]:
        """Raises `EnvironmentFault("deadline")` when somebody else keeps it for too long."""
        number = hashlib.sha256(name.encode()).digest()[0] % _FILES
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(self._directory / f"{number:02}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise explain_os_error(error) from error
        try:
            _take(descriptor, time.monotonic() + self._deadline)
            yield
        finally:
            os.close(descriptor)


def _take(descriptor: int, end: float) -> None:
    wait = 0.0005
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= end:
                raise EnvironmentFault("deadline", "another process keeps the lock of this resource") from None
            time.sleep(wait * (0.5 + random.random()))  # noqa: S311 (spreads waiters, no secret)
            wait = min(wait * 2, 0.05)
        else:
            return
