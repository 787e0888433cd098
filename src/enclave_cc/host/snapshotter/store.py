"""What the snapshotter knows of its snapshots: one SQLite file, each operation one transaction.

A process that is killed at any point leaves what was committed and nothing else; a power cut too (synchronous=FULL:
containerd's own store would otherwise know snapshots that ours has lost). Ids are never used twice, so that a directory
left over from a removed snapshot cannot be taken for another's.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from enclave_cc.errors import EnvironmentFault, UsageError, foreign
from enclave_cc.record import record
from enclave_cc.wire.pb.snapshots import Kind

_SCHEMA = """
CREATE TABLE IF NOT EXISTS snapshot (
    id      INTEGER PRIMARY KEY AUTOINCREMENT,
    name    TEXT NOT NULL UNIQUE,
    parent  INTEGER REFERENCES snapshot(id) ON DELETE RESTRICT,
    kind    INTEGER NOT NULL,
    created INTEGER NOT NULL,               -- nanoseconds since the epoch
    updated INTEGER NOT NULL,
    size    INTEGER NOT NULL DEFAULT 0,     -- bytes and inodes, of committed ones
    inodes  INTEGER NOT NULL DEFAULT 0,
    guest   INTEGER NOT NULL DEFAULT 0      -- 1: the layer lies inside the enclave, there is no directory
) STRICT;
CREATE INDEX IF NOT EXISTS snapshot_parent ON snapshot(parent);
CREATE TABLE IF NOT EXISTS label (
    snapshot INTEGER NOT NULL REFERENCES snapshot(id) ON DELETE CASCADE,
    key      TEXT NOT NULL,
    value    TEXT NOT NULL,
    PRIMARY KEY (snapshot, key)
) STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS label_value ON label(key, value);
"""
_VERSION = 1
_COLUMNS = "s.id, s.name, coalesce(p.name, ''), s.kind, s.created, s.updated, s.size, s.inodes, s.guest"
_FROM = "FROM snapshot s LEFT JOIN snapshot p ON p.id = s.parent"


@record
class Snapshot:
    """`parent`: a name, or "". Times are nanoseconds since the epoch."""

    id: int
    name: str
    parent: str
    kind: Kind
    created: int
    updated: int
    size: int
    inodes: int
    guest: bool
    labels: Mapping[str, str]


class Store:
    """Safe for many threads; one process at a time (the caller sees to that).

    Every method raises `EnvironmentFault` ("disk-full", "environment") when SQLite cannot do its work.
    """

    def __init__(self, path: Path) -> None:
        self._lock = threading.RLock()
        with _translated():
            self._database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
                self._database.execute(f"PRAGMA {pragma}")
            version = int(self._database.execute("PRAGMA user_version").fetchone()[0])
            if version not in (0, _VERSION):
                raise EnvironmentFault(
                    "environment",
                    f"{path} was written by another version",
                    "Install the version that wrote it, or remove the file.",
                )
            self._database.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} PRAGMA user_version={_VERSION}; COMMIT;")

    def close(self) -> None:
        with self._lock:
            self._database.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """What is done inside happens whole or not at all; others wait."""
        with self._lock, _translated():
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._database.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):  # a full disk ends the transaction by itself
                    self._database.execute("ROLLBACK")
                raise

    # --- reading

    def get(self, name: str) -> Snapshot:
        """Raises `UsageError("not-found")`."""
        found = list(self._select("WHERE s.name = ?", (name,)))
        if not found:
            raise UsageError("not-found", f"there is no snapshot {foreign(name)}")
        return found[0]

    def exists(self, name: str) -> bool:
        return bool(list(self._select("WHERE s.name = ?", (name,))))

    def read_all(self) -> list[Snapshot]:
        """In the order of their making: parents before children."""
        return list(self._select("ORDER BY s.id", ()))

    def find_labelled(self, key: str, value: str) -> list[Snapshot]:
        return list(self._select("WHERE s.id IN (SELECT snapshot FROM label WHERE key = ? AND value = ?)", (key, value)))

    def ancestors(self, snapshot: Snapshot) -> list[Snapshot]:
        """Nearest first."""
        chain: list[Snapshot] = []
        with self._lock:
            while snapshot.parent:
                snapshot = self.get(snapshot.parent)
                chain.append(snapshot)
        return chain

    def ids(self) -> set[int]:
        with self._lock, _translated():
            return {row[0] for row in self._database.execute("SELECT id FROM snapshot")}

    def _select(self, clause: str, values: tuple[object, ...]) -> Iterator[Snapshot]:
        with self._lock, _translated():
            rows = self._database.execute(f"SELECT {_COLUMNS} {_FROM} {clause}", values).fetchall()
            for row in rows:
                labels = dict(self._database.execute("SELECT key, value FROM label WHERE snapshot = ?", row[:1]))
                identifier, name, parent, kind, created, updated, size, inodes, guest = row
                yield Snapshot(identifier, name, parent, Kind(kind), created, updated, size, inodes, bool(guest), labels)

    # --- writing, inside a transaction

    def insert(self, name: str, parent: str, kind: Kind, labels: Mapping[str, str], *, guest: bool = False) -> Snapshot:
        """Raises `UsageError`: "already-exists", "not-found" for the parent, "usage" for a parent that is not committed."""
        if not name:
            raise UsageError("usage", "a snapshot needs a name")
        above = self.get(parent) if parent else None
        if above is not None and above.kind is not Kind.COMMITTED:
            raise UsageError("usage", f"the parent {foreign(parent)} is not a committed snapshot")
        if self.exists(name):
            raise UsageError("already-exists", f"there is a snapshot {foreign(name)}")
        now = time.time_ns()
        cursor = self._database.execute(
            "INSERT INTO snapshot (name, parent, kind, created, updated, guest) VALUES (?, ?, ?, ?, ?, ?)",
            (name, above.id if above else None, int(kind), now, now, int(guest)),
        )
        self._write_labels(int(cursor.lastrowid or 0), labels)
        return self.get(name)

    def commit(self, name: str, key: str, parent: str, labels: Mapping[str, str], size: int, inodes: int) -> Snapshot:
        """Makes the active snapshot `key` the committed `name`; `parent` (or "") can be given to one that had none.

        Raises `UsageError`: "already-exists", "not-found", "wrong-state", "usage".
        """
        if not name:
            raise UsageError("usage", "a snapshot needs a name")
        if self.exists(name):
            raise UsageError("already-exists", f"there is a snapshot {foreign(name)}")
        found = self.get(key)
        if found.kind is not Kind.ACTIVE:
            raise UsageError("wrong-state", f"the snapshot {foreign(key)} is not active")
        if parent and found.parent and parent != found.parent:
            raise UsageError("usage", f"the snapshot {foreign(key)} has another parent already")
        above = self.get(found.parent or parent) if found.parent or parent else None
        if above is not None and above.kind is not Kind.COMMITTED:
            raise UsageError("wrong-state", f"the parent {foreign(above.name)} is not a committed snapshot")
        now = time.time_ns()
        self._database.execute(
            "UPDATE snapshot SET name = ?, parent = ?, kind = ?, created = ?, updated = ?, size = ?, inodes = ? WHERE id = ?",
            (name, above.id if above else None, int(Kind.COMMITTED), now, now, size, inodes, found.id),
        )
        self._write_labels(found.id, labels)
        return self.get(name)

    def relabel(self, name: str, labels: Mapping[str, str]) -> Snapshot:
        """Raises `UsageError("not-found")`."""
        found = self.get(name)
        self._write_labels(found.id, labels)
        self._database.execute("UPDATE snapshot SET updated = ? WHERE id = ?", (time.time_ns(), found.id))
        return self.get(name)

    def remove(self, name: str) -> Snapshot:
        """Raises `UsageError`: "not-found", or "wrong-state" when it has children."""
        found = self.get(name)
        if self._database.execute("SELECT 1 FROM snapshot WHERE parent = ? LIMIT 1", (found.id,)).fetchone():
            raise UsageError("wrong-state", f"cannot remove snapshot {foreign(name)}: it has children")
        self._database.execute("DELETE FROM snapshot WHERE id = ?", (found.id,))
        return found

    def _write_labels(self, identifier: int, labels: Mapping[str, str]) -> None:
        self._database.execute("DELETE FROM label WHERE snapshot = ?", (identifier,))
        kept = [(identifier, key, value) for key, value in labels.items() if value]  # as containerd: no empty ones
        self._database.executemany("INSERT INTO label VALUES (?, ?, ?)", kept)


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        if getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_FULL:
            raise EnvironmentFault("disk-full", "the snapshotter's database cannot grow") from error
        raise EnvironmentFault("environment", f"the snapshotter's database: {foreign(error)}") from error
