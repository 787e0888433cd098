"""SQLite and PostgreSQL: the suite, and each one's own faults."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from database import ADD, DatabaseSuite

from enclave_cc.errors import EnvironmentFault, UsageError
from enclave_cc.owner.storage import migration
from enclave_cc.owner.storage.database import Conflict, Database
from enclave_cc.owner.storage.postgresql import read_url
from enclave_cc.owner.storage.settings import PASSWORD_VARIABLE, DatabaseSettings, open_database
from enclave_cc.owner.storage.sqlite import SqliteDatabase
from enclave_cc.record import replace
from private_postgresql import PASSWORD


class TestBoth(DatabaseSuite):
    @pytest.fixture
    def settings(self, database_settings: DatabaseSettings) -> DatabaseSettings:
        return database_settings


# --- SQLite


def test_no_file_and_no_database(tmp_path: Path) -> None:
    path = tmp_path / "kbs.db"
    with pytest.raises(UsageError) as absent:
        SqliteDatabase(path)
    assert absent.value.code == "not-found"
    assert not path.exists()
    path.write_bytes(b"not a database" * 100)
    with pytest.raises(EnvironmentFault) as broken:
        SqliteDatabase(path)
    assert broken.value.code == "environment"


def test_sqlite_files_are_private(tmp_path: Path) -> None:
    database = SqliteDatabase(tmp_path / "kbs.db", create=True)
    migration.migrate(database)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o600}
    database.close()


def test_removed_bytes_are_overwritten(tmp_path: Path) -> None:
    database = SqliteDatabase(tmp_path / "kbs.db", create=True)
    migration.migrate(database)
    canary = os.urandom(64)
    with database.write() as db:
        db.execute(ADD, ("a", canary))
    with database.write() as db:
        db.execute("DELETE FROM root")
    database.close()
    assert canary not in (tmp_path / "kbs.db").read_bytes()


def test_a_full_disk(tmp_path: Path) -> None:
    database = SqliteDatabase(tmp_path / "kbs.db", create=True)
    migration.migrate(database)
    with database.write() as db:
        db.execute("PRAGMA max_page_count = 60")
    with pytest.raises(EnvironmentFault) as full, database.write() as db:
        db.execute(ADD, ("a", os.urandom(1 << 20)))
    assert full.value.code == "disk-full"
    with database.write() as db:
        db.execute(ADD, ("b", b""))
    database.close()


# --- PostgreSQL


@pytest.fixture
def postgres_settings(postgresql: Any) -> Iterator[DatabaseSettings]:
    name = postgresql.create_database("kbs_template")
    yield DatabaseSettings(postgresql.url(name), connect_timeout=2)
    postgresql.drop_database(name)


@pytest.fixture
def postgres(postgres_settings: DatabaseSettings, tmp_path: Path) -> Iterator[Database]:
    opened = open_database(postgres_settings, tmp_path)
    yield opened
    opened.close()


def test_commits_are_as_durable_as_asked(postgres: Database, postgresql: Any) -> None:
    sql = "SELECT current_setting('synchronous_commit')"
    for durable, expected in ((True, "on"), (False, "off"), (True, "on")):
        with postgres.write(durable=durable) as db:
            assert db.execute(sql).fetchone() == (expected,)


def test_a_server_that_acknowledges_early_is_told_not_to(
    postgres_settings: DatabaseSettings, postgresql: Any, tmp_path: Path
) -> None:
    name = postgres_settings.url.split("/")[3].partition("?")[0]
    postgresql.run(f"ALTER DATABASE {name} SET synchronous_commit = off")
    database = open_database(postgres_settings, tmp_path)
    with database.write() as db:
        assert db.execute("SELECT current_setting('synchronous_commit')").fetchone() == ("on",)
    database.close()


def test_connections_that_the_server_ended_are_replaced(postgres: Database, postgresql: Any) -> None:
    for _ in range(3):
        with postgres.read() as db:
            pid = db.execute("SELECT pg_backend_pid()").fetchone()[0]
        postgresql.run(f"SELECT pg_terminate_backend({pid}, 5000)")
    with pytest.raises(EnvironmentFault) as lost, postgres.write() as db:
        db.execute(ADD, ("a", b""))
        pid = db.execute("SELECT pg_backend_pid()").fetchone()[0]
        postgresql.run(f"SELECT pg_terminate_backend({pid}, 5000)")
    assert lost.value.code == "database-unreachable"
    with postgres.read() as db:
        assert db.execute("SELECT count(*) FROM root").fetchone() == (0,)


def test_a_deadlock_is_a_conflict(postgres: Database) -> None:
    with postgres.write() as db:
        db.execute(ADD, ("a", b""))
        db.execute(ADD, ("b", b""))
    first, second = threading.Event(), threading.Event()
    codes: list[str] = []

    def change(names: tuple[str, str], mine: threading.Event, other: threading.Event) -> None:
        try:
            with postgres.write() as db:
                db.execute("UPDATE root SET added = 1 WHERE name = ?", (names[0],))
                mine.set()
                other.wait(10)
                db.execute("UPDATE root SET added = 1 WHERE name = ?", (names[1],))
            codes.append("done")
        except Conflict:
            codes.append("conflict")

    threads = [
        threading.Thread(target=change, args=(("a", "b"), first, second)),
        threading.Thread(target=change, args=(("b", "a"), second, first)),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert sorted(codes) == ["conflict", "done"]


def test_a_slow_statement_is_ended_by_the_server(postgres_settings: DatabaseSettings, tmp_path: Path) -> None:
    database = open_database(replace(postgres_settings, statement_timeout=0.2), tmp_path)
    with pytest.raises(EnvironmentFault) as slow, database.read() as db:
        db.execute("SELECT pg_sleep(20)")
    assert slow.value.code == "deadline"
    with database.read() as db:
        assert db.execute("SELECT 1").fetchone() == (1,)
    database.close()


def test_a_server_that_stands_still_is_given_up(postgres_settings: DatabaseSettings, tmp_path: Path) -> None:
    """SIGSTOP of the backend: no timeout of the server's own can help."""
    database = open_database(replace(postgres_settings, statement_timeout=0.3, connect_timeout=0.3), tmp_path)
    with database.read() as db:
        pid = db.execute("SELECT pg_backend_pid()").fetchone()[0]
    os.kill(pid, signal.SIGSTOP)
    try:
        with pytest.raises(EnvironmentFault) as stuck, database.read() as db:
            db.execute("SELECT 1")
        assert stuck.value.code == "database-unreachable"
        with database.read() as db:
            assert db.execute("SELECT pg_backend_pid()").fetchone()[0] != pid
    finally:
        os.kill(pid, signal.SIGCONT)
        database.close()


def test_all_connections_in_use(postgres_settings: DatabaseSettings, tmp_path: Path) -> None:
    database = open_database(replace(postgres_settings, pool=1, connect_timeout=0.2), tmp_path)
    with database.read():
        with pytest.raises(EnvironmentFault) as none, database.read():
            raise AssertionError
    assert none.value.code == "deadline"
    database.close()


def test_a_server_that_starts_late_is_waited_for(postgresql: Any, tmp_path: Path) -> None:
    from private_postgresql import PrivatePostgresql

    server = PrivatePostgresql()
    try:
        server.start()
        database = open_database(DatabaseSettings(server.url("postgres"), connect_timeout=20), tmp_path)
        server.kill()
        found: list[object] = []

        def ask() -> None:
            with database.read() as db:
                found.append(db.execute("SELECT 1").fetchone())

        asking = threading.Thread(target=ask)
        asking.start()
        time.sleep(0.3)
        server.start()
        asking.join(30)
        assert found == [(1,)]
        database.close()
    finally:
        server.stop()


def test_a_server_that_is_gone_is_tried_once_a_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import psycopg

    from private_postgresql import PrivatePostgresql

    server = PrivatePostgresql()
    try:
        server.start()
        database = open_database(DatabaseSettings(server.url("postgres"), connect_timeout=1), tmp_path)
        server.kill()
        tries: list[int] = []
        original = psycopg.connect
        monkeypatch.setattr(psycopg, "connect", lambda *a, **k: (tries.append(1), original(*a, **k))[1])
        counts = []
        for _ in range(3):
            tries.clear()
            with pytest.raises(EnvironmentFault), database.read():
                raise AssertionError
            counts.append(len(tries))
        assert counts[0] > 1
        assert counts[1:] == [1, 1]
        server.start()
        with database.read() as db:
            assert db.execute("SELECT 1").fetchone() == (1,)
        database.close()
    finally:
        server.stop()


def test_no_server(tmp_path: Path) -> None:
    settings = DatabaseSettings("postgresql://kbs@127.0.0.1:1/kbs", connect_timeout=0.2)
    with pytest.raises(EnvironmentFault) as down:
        open_database(settings, tmp_path)
    assert (down.value.code, down.value.exit) == ("database-unreachable", 8)


def test_passwords(postgresql: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a file or the environment; a wrong one is refused at once, and none is ever told."""
    postgresql.run(f"CREATE ROLE owner LOGIN PASSWORD '{PASSWORD}'")
    settings = DatabaseSettings(postgresql.url_by_tcp("kbs_template", "owner"))
    monkeypatch.setenv("PGPASSFILE", "/nonexistent")
    begin = time.monotonic()
    for password in (None, "CANARY-password"):
        monkeypatch.delenv(PASSWORD_VARIABLE, raising=False)
        if password:
            monkeypatch.setenv(PASSWORD_VARIABLE, password)
        with pytest.raises(EnvironmentFault) as refused:
            open_database(settings, tmp_path)
        assert refused.value.code == "database-unreachable"
        assert "CANARY" not in str(refused.value)
    assert time.monotonic() - begin < 4
    monkeypatch.setenv(PASSWORD_VARIABLE, PASSWORD)
    open_database(settings, tmp_path).close()
    monkeypatch.setenv(PASSWORD_VARIABLE, "CANARY-password")
    (tmp_path / "password").write_text(PASSWORD + "\n")
    open_database(replace(settings, password_file="password"), tmp_path).close()
    with pytest.raises(UsageError) as absent:
        open_database(replace(settings, password_file="absent"), tmp_path)
    assert absent.value.code == "bad-config"
    postgresql.run("DROP ROLE owner")


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:CANARY@host/kbs",
        "postgresql://me@host/kbs?password=CANARY",
        "postgresql://host/kbs?nonsense=CANARY",
        "mysql://me:CANARY@host/kbs",
        "sqlite:",
    ],
)
def test_urls_that_are_refused(url: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as refused:
        open_database(DatabaseSettings(url), tmp_path)
    assert refused.value.code == "bad-config"
    assert "CANARY" not in str(refused.value)


@pytest.mark.parametrize(
    ("url", "mode"),
    [
        ("postgresql://me@db.example/kbs", "verify-full"),
        ("postgresql://me@localhost,db.example/kbs", "verify-full"),
        ("postgresql://me@db.example/kbs?sslmode=require", "require"),
        ("postgresql://me@localhost/kbs?hostaddr=192.0.2.1", "verify-full"),
        ("postgresql:///kbs?service=there", "verify-full"),
        ("postgresql://me@127.0.0.1/kbs", None),
        ("postgresql:///kbs?host=/run/postgresql", None),
        ("postgresql:///kbs", None),
    ],
)
def test_servers_elsewhere_are_reached_by_verified_tls(url: str, mode: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    import psycopg.conninfo

    for name in ("PGHOST", "PGHOSTADDR", "PGSERVICE"):
        monkeypatch.delenv(name, raising=False)
    assert psycopg.conninfo.conninfo_to_dict(read_url(url)).get("sslmode") == mode
    if mode is None:
        monkeypatch.setenv("PGHOSTADDR", "192.0.2.1")
        assert psycopg.conninfo.conninfo_to_dict(read_url(url)).get("sslmode") == "verify-full"


def test_other_servers_are_refused(postgresql: Any, tmp_path: Path) -> None:
    postgresql.run("CREATE DATABASE latin TEMPLATE template0 ENCODING 'SQL_ASCII' LOCALE 'C'")
    with pytest.raises(UsageError) as refused:
        open_database(DatabaseSettings(postgresql.url("latin")), tmp_path)
    assert refused.value.code == "bad-config"
    postgresql.drop_database("latin")


def test_without_psycopg(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import sys

    from enclave_cc.owner import storage

    monkeypatch.delattr(storage, "postgresql")
    monkeypatch.delitem(sys.modules, "enclave_cc.owner.storage.postgresql")
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(EnvironmentFault) as missing:
        open_database(DatabaseSettings("postgresql:///kbs"), tmp_path)
    assert missing.value.code == "missing-tool"
