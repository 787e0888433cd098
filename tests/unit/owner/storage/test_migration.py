"""Migrations: each once, whole, in order; other schemas are refused."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from enclave_cc.errors import EnvironmentFault, UsageError
from enclave_cc.owner.storage import migration
from enclave_cc.owner.storage.database import Database
from enclave_cc.owner.storage.settings import DatabaseSettings, open_database


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_settings(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[DatabaseSettings]:
    if request.param == "sqlite":
        yield DatabaseSettings(f"sqlite:{tmp_path / 'kbs.db'}")
        return
    server = request.getfixturevalue("postgresql")
    name = server.create_database()
    yield DatabaseSettings(server.url(name))
    server.drop_database(name)


@pytest.fixture
def empty(empty_settings: DatabaseSettings, tmp_path: Path) -> Iterator[Database]:
    opened = open_database(empty_settings, tmp_path, create=True)
    yield opened
    opened.close()


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    directory = tmp_path / "migrations"
    directory.mkdir()
    (directory / "0001_one.sql").write_text(
        "-- One; two.\nCREATE TABLE one (a TEXT PRIMARY KEY, b BLOB);\n\nCREATE TABLE two (n INTEGER);\n"
    )
    (directory / "0005_five.sql").write_text("INSERT INTO one VALUES ('a;b', NULL);\n")
    (directory / "README").write_text("no migration")
    monkeypatch.setattr(migration, "_directory", lambda: directory)
    return directory


def test_each_is_applied_once(empty: Database, files: Path) -> None:
    with pytest.raises(UsageError) as refused:
        migration.check(empty)
    assert (refused.value.code, "kbs migrate" in refused.value.fix) == ("wrong-state", True)
    assert migration.list_pending(empty) == migration.migrate(empty) == ["0001_one", "0005_five"]
    assert migration.migrate(empty) == []
    migration.check(empty)
    with empty.read() as db:
        assert db.execute("SELECT a FROM one").fetchall() == [("a;b",)]


def test_a_lower_number_that_came_later_is_applied(empty: Database, files: Path) -> None:
    migration.migrate(empty)
    (files / "0003_three.sql").write_text("CREATE TABLE three (n INTEGER PRIMARY KEY);\n")
    assert migration.migrate(empty) == ["0003_three"]


def test_a_failing_one_leaves_nothing(empty: Database, files: Path) -> None:
    (files / "0003_three.sql").write_text("CREATE TABLE three (n INTEGER);\nINSERT INTO absent VALUES (1);\n")
    with pytest.raises(EnvironmentFault):
        migration.migrate(empty)
    assert not empty.has_table("three")
    assert migration.list_pending(empty) == ["0003_three", "0005_five"]


def test_a_newer_schema_is_refused(empty: Database, files: Path) -> None:
    migration.migrate(empty)
    (files / "0005_five.sql").unlink()
    for act in (migration.check, migration.migrate):
        with pytest.raises(UsageError) as refused:
            act(empty)
        assert refused.value.code == "wrong-state"
        assert "0005_five" in refused.value.what


def test_many_at_once(empty: Database, empty_settings: DatabaseSettings, files: Path, tmp_path: Path) -> None:
    databases = [open_database(empty_settings, tmp_path) for _ in range(6)]
    with ThreadPoolExecutor(6) as pool:
        done = list(pool.map(migration.migrate, databases))
    for each in databases:
        each.close()
    assert sorted(name for names in done for name in names) == ["0001_one", "0005_five"]


def test_a_database_of_before_there_were_migrations(tmp_path: Path) -> None:
    """What an earlier `kbs init` made: the tables of 0001 and a `user_version`."""
    path = tmp_path / "kbs.db"
    raw = sqlite3.connect(path)
    for statement in migration._statements("0001_initial", "sqlite"):
        raw.execute(statement)
    raw.execute("INSERT INTO root VALUES ('kept', x'00', 0, 0)")
    raw.execute("PRAGMA user_version = 1")
    raw.commit()
    raw.close()
    opened = open_database(DatabaseSettings(), tmp_path)
    pending = migration.list_pending(opened)
    assert "0001_initial" not in pending
    assert migration.migrate(opened) == pending
    migration.check(opened)
    with opened.read() as db:
        assert db.execute("SELECT name FROM root").fetchall() == [("kept",)]
    opened.close()


def test_foreign_sqlite_files_are_refused(tmp_path: Path) -> None:
    raw = sqlite3.connect(tmp_path / "kbs.db")
    raw.execute("PRAGMA user_version = 99")
    raw.close()
    opened = open_database(DatabaseSettings(), tmp_path)
    with pytest.raises(UsageError) as refused:
        migration.migrate(opened)
    assert refused.value.code == "wrong-state"
    opened.close()


def test_types_are_translated() -> None:
    sql = "CREATE TABLE t (n INTEGER PRIMARY KEY, v INTEGER, b BLOB, s TEXT) WITHOUT ROWID"
    assert migration.translate(sql, "sqlite") == sql
    assert migration.translate(sql, "postgresql") == (
        'CREATE TABLE t (n BIGINT GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY, v BIGINT, b BYTEA, s TEXT COLLATE "C")'
    )


def test_the_shipped_ones_are_in_the_wheel() -> None:
    code = "from enclave_cc.owner.storage import migration; print(migration.list_names()[0])"
    assert subprocess.check_output([sys.executable, "-c", code], cwd="/", text=True) == "0001_initial\n"
