"""Caches that several processes keep of one database: never older than the last change that was acknowledged."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from enclave_cc.owner.storage import generations as module
from enclave_cc.owner.storage.database import Connection, Database
from enclave_cc.owner.storage.generations import Cache, Generations
from enclave_cc.owner.storage.settings import DatabaseSettings, open_database


@pytest.fixture
def open_another(database_settings: DatabaseSettings, tmp_path: Path) -> Iterator[Callable[[], Database]]:
    opened: list[Database] = []

    def start() -> Database:
        opened.append(open_database(database_settings, tmp_path))
        return opened[-1]

    yield start
    for each in opened:
        each.close()


def set_value(value: int) -> Callable[[Connection], None]:
    def work(db: Connection) -> None:
        db.execute("DELETE FROM root")
        db.execute("INSERT INTO root VALUES ('a', ?, 0, ?)", (b"", value))

    return work


def read_value(database: Database) -> int:
    with database.read() as db:
        row = db.execute("SELECT added FROM root").fetchone()
    return -1 if row is None else int(row[0])


def test_a_change_is_seen_by_all_once_it_returned(open_another: Callable[[], Database]) -> None:
    """Readers that look all the time; none may see less than what was acknowledged before it began to look."""
    writer = Generations(open_another())
    acknowledged = 0
    behind: list[tuple[int, int]] = []
    stop = threading.Event()

    def look(database: Database) -> None:
        cache: Cache[int] = Cache(Generations(database), "root")
        while not stop.is_set():
            expected = acknowledged
            found = cache.get("value", lambda: read_value(database))
            if found < expected:
                behind.append((found, expected))

    writer.change("root", set_value(0))
    threads = [threading.Thread(target=look, args=(open_another(),)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for value in range(1, 30):
        writer.change("root", set_value(value))
        acknowledged = value
    stop.set()
    for thread in threads:
        thread.join()
    assert behind == []


def test_what_did_not_change_is_loaded_once(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = Generations(database)
    cache: Cache[int] = Cache(numbers, "root")
    loads: list[int] = []

    def load() -> int:
        loads.append(1)
        return len(loads)

    assert [cache.get("a", load) for _ in range(5)] == [1] * 5
    time.sleep(module.FRESH_SECONDS * 2)
    assert cache.get("a", load) == 1
    numbers.change("policy", lambda db: None)
    assert cache.get("a", load) == 1
    numbers.change("root", lambda db: None)
    assert cache.get("a", load) == 2


def test_many_lookups_ask_the_database_once(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FRESH_SECONDS", 60.0)
    numbers = Generations(database)
    reads: list[int] = []
    original = database.read
    monkeypatch.setattr(database, "read", lambda: (reads.append(1), original())[1])
    for topic in ("root", "policy") * 50:
        numbers.number(topic)
    assert len(reads) == 1


def test_a_failed_change_counts_nothing(database: Database) -> None:
    numbers = Generations(database)

    def fail(_: Connection) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        numbers.change("root", fail)
    with database.read() as db:
        assert db.execute("SELECT * FROM generation").fetchall() == []


def test_failures_are_not_kept_and_the_size_is_bounded(database: Database) -> None:
    cache: Cache[int] = Cache(Generations(database), "root", size=3)
    with pytest.raises(ZeroDivisionError):
        cache.get("a", lambda: 1 // 0)
    assert [cache.get(n, lambda n=n: n) for n in range(10)] == list(range(10))  # type: ignore[misc]
    assert len(cache._entries) <= 3


def test_what_was_loaded_across_a_change_is_not_kept_as_new(open_another: Callable[[], Database]) -> None:
    database = open_another()
    numbers = Generations(database)
    cache: Cache[int] = Cache(numbers, "root")
    numbers.change("root", set_value(1))

    def slow() -> int:
        value = read_value(database)
        numbers.change("root", set_value(2))
        cache.get("other", lambda: 0)  # another thread of this process has seen the new number meanwhile
        return value

    assert cache.get("a", slow) == 1
    assert cache.get("a", lambda: read_value(database)) == 2


def test_a_database_that_lost_changes_brings_nothing_back(open_another: Callable[[], Database]) -> None:
    """A standby that took over without the last change: the next one must not be taken for the one that was lost."""
    database = open_another()
    seen = Generations(database)
    cache: Cache[int] = Cache(seen, "root")
    Generations(open_another()).change("root", set_value(1))
    with database.read() as db:
        kept = db.execute("SELECT number FROM generation WHERE topic = 'root'").fetchone()[0]
    Generations(open_another()).change("root", set_value(2))
    assert cache.get("a", lambda: read_value(database)) == 2
    with database.write() as db:
        set_value(1)(db)
        db.execute("UPDATE generation SET number = ?", (kept,))
    Generations(open_another()).change("root", set_value(3))
    assert cache.get("a", lambda: read_value(database)) == 3
    with database.write() as db:
        set_value(1)(db)
        db.execute("UPDATE generation SET number = ?", (kept,))
    time.sleep(module.FRESH_SECONDS * 2)
    assert cache.get("a", lambda: read_value(database)) == 1
