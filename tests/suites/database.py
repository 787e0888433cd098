"""What every `Database` must hold to. A kind's test module subclasses `DatabaseSuite` and gives `settings`."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from enclave_cc.errors import EnvironmentFault, UsageError
from enclave_cc.owner.storage.database import Conflict, Connection, Database, transact
from enclave_cc.owner.storage.settings import DatabaseSettings, open_database

ADD = "INSERT INTO root VALUES (?, ?, 0, 0)"


class DatabaseSuite:
    @pytest.fixture
    def settings(self) -> DatabaseSettings:
        raise NotImplementedError

    @pytest.fixture
    def reopen(self, settings: DatabaseSettings, tmp_path: Path) -> Iterator[Callable[[], Database]]:
        opened: list[Database] = []

        def open_one() -> Database:
            opened.append(open_database(settings, tmp_path))
            return opened[-1]

        yield open_one
        for each in opened:
            each.close()

    @pytest.fixture
    def db(self, reopen: Callable[[], Database]) -> Database:
        return reopen()

    @staticmethod
    def names(database: Database) -> list[str]:
        with database.read() as db:
            return [row[0] for row in db.execute("SELECT name FROM root ORDER BY name")]

    def test_values_come_back_as_they_went_in(self, db: Database) -> None:
        text = "Ä漢🙂 % $1 %s ? ' \" \\"
        with db.write() as one:
            assert (
                one.execute("INSERT INTO resource VALUES (?, ?, ?, ?, ?)", (text, 1 << 40, -(1 << 63), b"\0\xff", None)).rowcount
                == 1
            )
            assert one.execute("SELECT '?', \"path\" FROM resource WHERE path = ?", (text,)).fetchone() == ("?", text)
        with db.read() as one:
            assert one.execute("SELECT * FROM resource").fetchall() == [(text, 1 << 40, -(1 << 63), b"\0\xff", None)]
            assert one.execute("SELECT * FROM resource WHERE version = ?", (5,)).fetchone() is None

    @pytest.mark.parametrize("value", ["a\0b", "\ud800", 1 << 63, -(1 << 64)])
    def test_what_cannot_be_stored_is_refused(self, db: Database, value: object) -> None:
        with pytest.raises(UsageError) as refused, db.write() as one:
            one.execute(ADD, (value, b""))
        assert refused.value.code == "usage"
        assert self.names(db) == []

    def test_text_sorts_by_code_point(self, db: Database) -> None:
        with db.write() as one:
            for name in ("b", "B", "a", "Z", "ä", "-", "a-b", "ab"):
                one.execute(ADD, (name, b""))
        assert self.names(db) == ["-", "B", "Z", "a", "a-b", "ab", "b", "ä"]

    @pytest.mark.parametrize("durable", [True, False])
    def test_a_transaction_is_everything_or_nothing(self, db: Database, reopen: Callable[[], Database], durable: bool) -> None:
        with pytest.raises(ZeroDivisionError), db.write(durable=durable) as one:
            one.execute(ADD, ("gone", b""))
            raise ZeroDivisionError
        with db.write(durable=durable) as one:
            one.execute(ADD, ("a", b""))
            assert self.names(reopen()) == []
            one.execute(ADD, ("b", b""))
        assert self.names(db) == self.names(reopen()) == ["a", "b"]

    @pytest.mark.parametrize("durable", [True, False])
    def test_one_statement_alone(self, db: Database, reopen: Callable[[], Database], durable: bool) -> None:
        done = db.run(ADD + " RETURNING name, added", ("a", b""), durable=durable)
        assert (done.rows, done.rowcount) == ([("a", 0)], 1)
        done = db.run(ADD + " ON CONFLICT DO NOTHING", ("a", b""), durable=durable)
        assert (done.rows, done.rowcount) == ([], 0)
        with pytest.raises(EnvironmentFault):
            db.run(ADD, ("a", b""), durable=durable)
        assert self.names(reopen()) == ["a"]
        assert db.run("DELETE FROM root", durable=durable).rowcount == 1
        assert self.names(reopen()) == []

    def test_a_failing_statement_undoes_its_transaction(self, db: Database) -> None:
        with pytest.raises(EnvironmentFault) as failed, db.write() as one:
            one.execute(ADD, ("a", b""))
            one.execute(ADD, ("a", b"the same key again, whose value is a secret"))
        assert failed.value.code == "environment"
        assert "secret" not in str(failed.value)
        assert self.names(db) == []
        with pytest.raises(EnvironmentFault), db.read() as one:
            one.execute("SELECT nothing FROM nowhere")
        assert self.names(db) == []

    def test_foreign_keys(self, db: Database) -> None:
        with pytest.raises(EnvironmentFault), db.write() as one:
            one.execute("INSERT INTO collateral VALUES ('absent', 'f', 'c', 0, '')")
        with db.write() as one:
            one.execute(ADD, ("a", b""))
            one.execute("INSERT INTO collateral VALUES ('a', 'f', 'c', 0, '')")
            one.execute("DELETE FROM root")
            assert one.execute("SELECT count(*) FROM collateral").fetchone() == (0,)

    def test_generated_numbers_grow(self, db: Database) -> None:
        numbers = []
        for name in "abc":
            with db.write() as one:
                sql = "INSERT INTO decision (id, at, outcome, document) VALUES (?, 0, 'deny', '') RETURNING number"
                numbers.append(one.execute(sql, (name,)).fetchone()[0])
        assert numbers == sorted(set(numbers))

    def test_a_lock_lets_one_transaction_at_a_time_read_and_write(self, reopen: Callable[[], Database]) -> None:
        databases = [reopen(), reopen()]

        def count(number: int) -> None:
            with databases[number % 2].write(lock="count") as one:
                version = one.execute("SELECT max(version) FROM policy").fetchone()[0] or 0
                one.execute("INSERT INTO policy (id, version, created, text) VALUES ('p', ?, 0, '')", (version + 1,))

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(count, range(60)))
        with databases[0].read() as one:
            assert one.execute("SELECT count(*), max(version) FROM policy").fetchone() == (60, 60)

    def test_transact_goes_again_after_a_conflict(self, db: Database) -> None:
        attempts = []

        def work(one: Connection) -> int:
            attempts.append(1)
            one.execute(ADD, (f"row{len(attempts)}", b""))
            if len(attempts) < 3:
                raise Conflict
            return len(attempts)

        assert transact(db, work) == 3
        assert self.names(db) == ["row3"]

    def test_conflicts_end(self, db: Database) -> None:
        def work(_: Connection) -> None:
            raise Conflict

        with pytest.raises(Conflict):
            transact(db, work)

    def test_a_held_lock_is_waited_for_with_a_deadline(self, settings: DatabaseSettings, tmp_path: Path, db: Database) -> None:
        from enclave_cc.record import replace

        hasty = open_database(replace(settings, lock_timeout=0.2), tmp_path)
        try:
            with db.write(lock="held") as one:
                one.execute(ADD, ("a", b""))
                with pytest.raises(EnvironmentFault) as late, hasty.write(lock="held"):
                    raise AssertionError
            assert late.value.code == "deadline"
            with hasty.write(lock="held") as one:
                one.execute(ADD, ("b", b""))
        finally:
            hasty.close()
        assert self.names(db) == ["a", "b"]

    def test_readers_do_not_wait_for_writers(self, db: Database, reopen: Callable[[], Database]) -> None:
        other = reopen()
        with db.write() as one:
            one.execute(ADD, ("a", b""))
            found: list[list[str]] = []
            thread = threading.Thread(target=lambda: found.append(self.names(other)))
            thread.start()
            thread.join(5)
            assert found == [[]]

    def test_many_threads(self, db: Database) -> None:
        def work(number: int) -> list[str]:
            with db.write(durable=bool(number % 2)) as one:
                one.execute(ADD, (f"{number:03}", b""))
            return self.names(db)

        with ThreadPoolExecutor(20) as pool:
            seen = list(pool.map(work, range(100)))
        assert all(f"{number:03}" in names for number, names in enumerate(seen))

    def test_tables_are_known(self, db: Database) -> None:
        assert db.has_table("resource")
        assert not db.has_table("resources")
