"""One SQLite file, for a KBS on one machine.

WAL with synchronous=FULL: what a write block ended for is on disk, and a reader never waits for a writer. Writers of
this process take turns on a lock, and wait for other processes (`kbs root` beside `kbs serve`, a second `kbs serve`)
at most `lock_timeout`.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from enclave_cc.errors import EnvironmentFault, UsageError, foreign
from enclave_cc.owner.storage.database import Dialect, Done, check_parameters

LOCK_SECONDS = 10.0


class _Connection:
    def __init__(self, raw: sqlite3.Connection) -> None:
        self.raw = raw

    def execute(self, sql: str, parameters: Sequence[object] = ()) -> sqlite3.Cursor:
        check_parameters(parameters)
        return self.raw.execute(sql, parameters)


class SqliteDatabase:
    """Connections to one file. Safe for many threads; each reads on a connection of its own."""

    dialect: Dialect = "sqlite"

    def __init__(self, path: Path, *, create: bool = False, lock_timeout: float = LOCK_SECONDS) -> None:
        """Raises `UsageError("not-found")` without `create` if the file is absent, `EnvironmentFault` for what SQLite says."""
        if not create and not path.exists():
            raise UsageError("not-found", f"there is no KBS database {path}", "Make one with `enclave-cc kbs init`.")
        if create:
            path.touch(mode=0o600)  # SQLite gives its WAL the same mode
        self._path = path
        self._lock_timeout = lock_timeout
        self._local = threading.local()
        self._write_lock = threading.Lock()
        self._all: list[sqlite3.Connection] = []
        self._all_lock = threading.Lock()
        with _faults():
            self._durable = self._open("FULL")
            self._relaxed = self._open("NORMAL")

    def _open(self, synchronous: str) -> _Connection:
        raw = sqlite3.connect(self._path, timeout=self._lock_timeout, isolation_level=None, check_same_thread=False)
        with self._all_lock:
            self._all.append(raw)
        _set_wal(raw, time.monotonic() + self._lock_timeout)
        for pragma in (
            f"synchronous = {synchronous}",
            "foreign_keys = ON",
            "secure_delete = ON",  # a removed secret's ciphertext is overwritten
            "trusted_schema = OFF",
        ):
            raw.execute(f"PRAGMA {pragma}")
        return _Connection(raw)

    @contextmanager
    def read(self) -> Iterator[_Connection]:
        with _faults():
            connection = getattr(self._local, "connection", None)
            if connection is None:
                connection = self._local.connection = self._open("FULL")
            yield connection

    @contextmanager
    def write(self, *, durable: bool = True, lock: str = "") -> Iterator[_Connection]:
        connection = self._durable if durable else self._relaxed
        if not self._write_lock.acquire(timeout=self._lock_timeout):
            raise EnvironmentFault("deadline", "the KBS database is busy")
        try:
            with _faults():
                connection.raw.execute("BEGIN IMMEDIATE")
                try:
                    yield connection
                    connection.raw.execute("COMMIT")
                except BaseException:
                    if connection.raw.in_transaction:  # SQLite ends it itself when, say, the disk is full
                        connection.raw.execute("ROLLBACK")
                    raise
        finally:
            self._write_lock.release()

    def run(self, sql: str, parameters: Sequence[object] = (), *, durable: bool = True) -> Done:
        with self.write(durable=durable) as db:
            cursor = db.execute(sql, parameters)
            return Done(cursor.fetchall(), cursor.rowcount)

    def has_table(self, name: str) -> bool:
        with self.read() as db:
            return db.execute("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?", (name,)).fetchone() is not None

    def close(self) -> None:
        """Closes the connections of ended threads too; the last one folds the WAL into the file."""
        with self._all_lock:
            connections, self._all = self._all, []
        for connection in connections:
            connection.close()


def _set_wal(raw: sqlite3.Connection, end: float) -> None:
    """SQLite does not wait for another process here, whatever the timeout says."""
    while True:
        try:
            raw.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError:
            if time.monotonic() > end:
                raise
            time.sleep(0.01)
        else:
            return


@contextmanager
def _faults() -> Iterator[None]:
    try:
        yield
    except sqlite3.DatabaseError as error:
        text = str(error)
        if "full" in text:
            raise EnvironmentFault("disk-full", "the KBS database cannot grow") from error
        if "locked" in text or "busy" in text:
            raise EnvironmentFault("deadline", "the KBS database is in use by another process") from error
        raise EnvironmentFault("environment", f"the KBS database fails: {foreign(text)}") from error
