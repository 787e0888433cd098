"""Connections that threads borrow: at most so many, the last one used first, dead ones replaced."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, Protocol, TypeVar

from enclave_cc.errors import EnvironmentFault


class Pooled(Protocol):
    def is_alive(self) -> bool: ...

    def close(self) -> None: ...


C = TypeVar("C", bound=Pooled)


class Pool(Generic[C]):
    """`open_one` makes a connection and may raise. Safe for many threads."""

    def __init__(self, open_one: Callable[[], C], size: int, timeout: float) -> None:
        self._open_one = open_one
        self._timeout = timeout
        self._free = threading.Semaphore(size)
        self._idle: list[C] = []
        self._lock = threading.Lock()
        self._closed = False

    @contextmanager
    def take(self) -> Iterator[C]:
        """A connection for the length of the block. Raises `EnvironmentFault("deadline")` when none gets free in time."""
        if not self._free.acquire(timeout=self._timeout):
            raise EnvironmentFault(
                "deadline", "all connections to the KBS database are in use", "Raise [database] pool in kbs.toml."
            )
        try:
            connection = self._pop() or self._open_one()
            try:
                yield connection
            finally:
                self._give_back(connection)
        finally:
            self._free.release()

    def close(self) -> None:
        """Closes what is idle now, and what is in use when it is given back."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def _pop(self) -> C | None:
        while True:
            with self._lock:
                if not self._idle:
                    return None
                connection = self._idle.pop()
            if connection.is_alive():
                return connection
            # One that died seldom died alone; the loop comes to the others.
            connection.close()

    def _give_back(self, connection: C) -> None:
        if connection.is_alive():
            with self._lock:
                if not self._closed:
                    self._idle.append(connection)
                    return
        connection.close()
