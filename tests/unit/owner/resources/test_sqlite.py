"""The SQLite store: the suite, and encryption at rest."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from resource_store import A, B, ResourceStoreSuite

from enclave_cc.crypto.secret import Secret
from enclave_cc.errors import EnvironmentFault, UsageError
from enclave_cc.owner.resources.database import Database
from enclave_cc.owner.resources.sqlite import KEPT_VERSIONS, SqliteResourceStore
from enclave_cc.owner.resources.store import ResourceStore
from enclave_cc.wire.rcar.uri import ResourcePath

KEY = Secret(bytes(range(32)))


@pytest.fixture
def open_store(tmp_path: Path) -> Iterator[Callable[..., SqliteResourceStore]]:
    opened: list[Database] = []

    def open_again(key: Secret = KEY) -> SqliteResourceStore:
        path = tmp_path / "kbs.db"
        opened.append(Database(path, create=not path.exists()))
        return SqliteResourceStore(opened[-1], key)

    yield open_again
    for database in opened:
        database.close()


class TestSqlite(ResourceStoreSuite):
    @pytest.fixture
    def store(self, open_store: Callable[[], ResourceStore]) -> ResourceStore:
        return open_store()

    @pytest.fixture
    def reopen(self, open_store: Callable[[], ResourceStore]) -> Callable[[], ResourceStore]:
        return open_store


def test_nothing_readable_on_disk(open_store: Callable[..., SqliteResourceStore], tmp_path: Path) -> None:
    canary = os.urandom(8).hex().encode() * 4
    store = open_store()
    store.put(A, Secret(canary))
    store.delete(A)
    store.put(B, Secret(canary))
    for path in tmp_path.iterdir():
        assert canary[:16] not in path.read_bytes()
        assert path.stat().st_mode & 0o077 == 0


def test_rows_cannot_change_places(open_store: Callable[..., SqliteResourceStore], tmp_path: Path) -> None:
    """A value moved to another path, or an old version in a new one's place, does not open; nor does another key."""
    store = open_store()
    store.put(A, Secret(b"a1"))
    store.put(A, Secret(b"a2"))
    store.put(B, Secret(b"b1"))
    with sqlite3.connect(tmp_path / "kbs.db") as raw:
        raw.execute("UPDATE resource SET path = 'x/y/z' WHERE path = ?", (str(B),))
        raw.execute(
            "UPDATE resource SET nonce = (SELECT nonce FROM resource WHERE path = ?1 AND version = 1),"
            " value = (SELECT value FROM resource WHERE path = ?1 AND version = 1) WHERE path = ?1 AND version = 2",
            (str(A),),
        )
    raw.close()
    for path in (A, ResourcePath.parse("x/y/z")):
        with pytest.raises(EnvironmentFault) as refused:
            store.get(path)
        assert refused.value.code == "environment"
    assert store.get(A, 1).value == Secret(b"a1")
    with pytest.raises(EnvironmentFault):
        open_store(Secret(bytes(32))).get(A, 1)


def test_old_versions_go(open_store: Callable[..., SqliteResourceStore]) -> None:
    store = open_store()
    for number in range(KEPT_VERSIONS + 3):
        store.put(A, Secret(bytes([number])))
    with pytest.raises(UsageError):
        store.get(A, 3)
    assert store.get(A, 4).value == Secret(b"\3")


def test_another_schema_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "kbs.db"
    with pytest.raises(UsageError) as absent:
        Database(path)
    assert absent.value.code == "not-found"
    Database(path, create=True).close()
    with sqlite3.connect(path) as raw:
        raw.execute("PRAGMA user_version = 99")
    raw.close()
    with pytest.raises(UsageError) as refused:
        Database(path)
    assert refused.value.code == "bad-config"
    path.write_bytes(b"not a database" * 100)
    with pytest.raises(EnvironmentFault):
        Database(path)


def test_a_killed_writer_loses_nothing_it_acknowledged(tmp_path: Path) -> None:
    """SIGKILL at any moment: what `put` returned for is there and opens, and nothing half-written is."""
    program = textwrap.dedent("""
        import sys
        from pathlib import Path
        from enclave_cc.crypto.secret import Secret
        from enclave_cc.owner.resources.database import Database
        from enclave_cc.owner.resources.sqlite import SqliteResourceStore
        from enclave_cc.wire.rcar.uri import ResourcePath
        store = SqliteResourceStore(Database(Path(sys.argv[1])), Secret(bytes(range(32))))
        path = ResourcePath.parse("default/key/a")
        while True:
            version = store.put(path, Secret(sys.argv[2].encode() * 2000))
            print(version, flush=True)
    """)
    path = tmp_path / "kbs.db"
    Database(path, create=True).close()
    last = 0
    for attempt in range(6):
        child = subprocess.Popen([sys.executable, "-c", program, str(path), str(attempt)], stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        for _ in range(3 + attempt * 2):
            last = int(child.stdout.readline())
        child.send_signal(signal.SIGKILL)
        last = max([last, *(int(line) for line in child.stdout.read().splitlines() if line)])
        child.wait()
        child.stdout.close()
        database = Database(path)
        found = SqliteResourceStore(database, KEY).get(A)
        database.close()
        assert last <= found.version <= last + 1
        assert found.value == Secret(str(attempt).encode() * 2000)
