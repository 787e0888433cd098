"""One SQLite file behind resources, reference values, policies, roots and decisions.

WAL with synchronous=FULL: what a write call returned from is on disk, and a reader never waits for a writer. Writers
take turns on a lock of this process, and wait for another process (`kbs root` beside `kbs serve`) at most
`BUSY_SECONDS`.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from enclave_cc.errors import EnvironmentFault, UsageError, foreign

BUSY_SECONDS = 10.0
SCHEMA_VERSION = 1

_SCHEMA = """
CREATE TABLE resource (
    path TEXT NOT NULL, version INTEGER NOT NULL, created INTEGER NOT NULL,
    nonce BLOB, value BLOB,
    PRIMARY KEY (path, version)
) WITHOUT ROWID;
CREATE TABLE reference_value (
    name TEXT NOT NULL, value TEXT NOT NULL, member INTEGER NOT NULL,
    expires INTEGER, added INTEGER NOT NULL, source TEXT NOT NULL,
    PRIMARY KEY (name, value)
) WITHOUT ROWID;
CREATE TABLE policy (
    id TEXT NOT NULL, version INTEGER NOT NULL, created INTEGER NOT NULL, text TEXT NOT NULL,
    PRIMARY KEY (id, version)
) WITHOUT ROWID;
CREATE TABLE root (
    name TEXT PRIMARY KEY, certificate BLOB NOT NULL, simulated INTEGER NOT NULL, added INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE collateral (
    root TEXT NOT NULL REFERENCES root (name) ON DELETE CASCADE, fmspc TEXT NOT NULL, ca TEXT NOT NULL,
    added INTEGER NOT NULL, document TEXT NOT NULL,
    PRIMARY KEY (root, fmspc, ca)
) WITHOUT ROWID;
CREATE TABLE decision (
    number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, at INTEGER NOT NULL, outcome TEXT NOT NULL,
    code TEXT, document TEXT NOT NULL
);
"""


class Database:
    """Connections to one file. Safe for many threads; each reads on a connection of its own."""

    def __init__(self, path: Path, *, create: bool = False) -> None:
        """Raises `UsageError`: "not-found" without `create` if the file is absent, "bad-config" for another schema;
        `EnvironmentFault` for what SQLite says."""
        if not create and not path.exists():
            raise UsageError("not-found", f"there is no KBS database {path}", "Make one with `enclave-cc kbs init`.")
        if create:
            path.touch(mode=0o600)  # SQLite gives its WAL the same mode
        self._path = path
        self._local = threading.local()
        self._write_lock = threading.Lock()
        self._all: list[sqlite3.Connection] = []
        self._all_lock = threading.Lock()
        with _faults():
            self._durable = self._open("FULL")
            # Decisions are many and none was promised to anybody: they survive a killed process, not a power cut.
            self._relaxed = self._open("NORMAL")
            if create:
                self._durable.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;")
            found = self._durable.execute("PRAGMA user_version").fetchone()[0]
        if found != SCHEMA_VERSION:
            raise UsageError("bad-config", f"the KBS database has schema {found}, this program needs {SCHEMA_VERSION}")

    def _open(self, synchronous: str) -> sqlite3.Connection:
        connection = sqlite3.connect(self._path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
        for pragma in (
            "journal_mode = WAL",
            f"synchronous = {synchronous}",
            "foreign_keys = ON",
            "secure_delete = ON",  # a removed secret's ciphertext is overwritten
            "trusted_schema = OFF",
        ):
            connection.execute(f"PRAGMA {pragma}")
        with self._all_lock:
            self._all.append(connection)
        return connection

    @contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """This thread's connection; each statement sees a consistent state."""
        with _faults():
            connection = getattr(self._local, "connection", None)
            if connection is None:
                connection = self._local.connection = self._open("FULL")
            yield connection

    @contextmanager
    def write(self, *, durable: bool = True) -> Iterator[sqlite3.Connection]:
        """One transaction: everything in the block or nothing. `durable`: on disk when the block ends."""
        connection = self._durable if durable else self._relaxed
        with self._write_lock, _faults():
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
            except BaseException:
                connection.execute("ROLLBACK")
                raise
            connection.execute("COMMIT")

    def close(self) -> None:
        """Closes every connection, those of ended threads too; the last one folds the WAL into the file."""
        with self._all_lock:
            connections, self._all = self._all, []
        for connection in connections:
            connection.close()


@contextmanager
def _faults() -> Iterator[None]:
    try:
        yield
    except sqlite3.OperationalError as error:
        text = str(error)
        if "full" in text:
            raise EnvironmentFault("disk-full", "the KBS database cannot grow") from error
        if "locked" in text or "busy" in text:
            raise EnvironmentFault("deadline", "the KBS database is in use by another process") from error
        raise EnvironmentFault("environment", f"the KBS database fails: {foreign(text)}") from error
    except sqlite3.DatabaseError as error:
        raise EnvironmentFault("environment", f"the KBS database fails: {foreign(str(error))}") from error
