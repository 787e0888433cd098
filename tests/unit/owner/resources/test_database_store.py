"""The store in the KBS database, SQLite and PostgreSQL: the suite, and encryption at rest."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from resource_store import A, B, ResourceStoreSuite

from enclave_cc.crypto.secret import Secret
from enclave_cc.errors import EnvironmentFault
from enclave_cc.owner.resources.database_store import DatabaseResourceStore
from enclave_cc.owner.resources.sealing import Keyring
from enclave_cc.owner.resources.store import ResourceStore
from enclave_cc.owner.storage.database import Database
from enclave_cc.owner.storage.settings import DatabaseSettings, open_database
from enclave_cc.wire.rcar.uri import ResourcePath

KEY = Secret(bytes(range(32)))


@pytest.fixture
def open_store(database_settings: DatabaseSettings, tmp_path: Path) -> Iterator[Callable[..., DatabaseResourceStore]]:
    opened: list[Database] = []

    def open_again(key: Secret = KEY) -> DatabaseResourceStore:
        opened.append(open_database(database_settings, tmp_path))
        return DatabaseResourceStore(opened[-1], Keyring([key]))

    yield open_again
    for database in opened:
        database.close()


class TestDatabase(ResourceStoreSuite):
    @pytest.fixture
    def store(self, open_store: Callable[[], ResourceStore]) -> ResourceStore:
        return open_store()

    @pytest.fixture
    def reopen(self, open_store: Callable[[], ResourceStore]) -> Callable[[], ResourceStore]:
        return open_store


def test_nothing_readable_in_the_database(database: Database, tmp_path: Path) -> None:
    canary = os.urandom(8).hex().encode() * 4
    store = DatabaseResourceStore(database, Keyring([KEY]))
    store.put(A, Secret(canary))
    store.delete(A)
    store.put(B, Secret(canary))
    with database.read() as db:
        for row in db.execute("SELECT * FROM resource"):
            assert canary[:16] not in repr(row).encode()
    for path in tmp_path.iterdir():
        assert canary[:16] not in path.read_bytes()
        assert path.stat().st_mode & 0o077 == 0


def test_rows_cannot_change_places(open_store: Callable[..., DatabaseResourceStore], database: Database) -> None:
    """A value moved to another path, or an old version in a new one's place, does not open; nor does another key."""
    store = open_store()
    store.put(A, Secret(b"a1"))
    store.put(A, Secret(b"a2"))
    store.put(B, Secret(b"b1"))
    with database.write() as db:
        for table in ("resource", "resource_head", "resource_version"):
            db.execute(f"UPDATE {table} SET path = 'x/y/z' WHERE path = ?", (str(B),))
        old = db.execute("SELECT nonce, value FROM resource WHERE path = ? AND version = 1", (str(A),)).fetchone()
        db.execute("UPDATE resource SET nonce = ?, value = ? WHERE path = ? AND version = 2", (*old, str(A)))
    for path in (A, ResourcePath.parse("x/y/z")):
        with pytest.raises(EnvironmentFault) as refused:
            store.get(path)
        assert refused.value.code == "environment"
    assert store.get(A, 1).value == Secret(b"a1")
    with pytest.raises(EnvironmentFault):
        open_store(Secret(bytes(32))).get(A, 1)
