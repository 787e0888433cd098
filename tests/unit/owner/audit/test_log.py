"""The append-only log on both databases: what is acknowledged is there, in one chain and one tree."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from enclave_cc.crypto import ed25519
from enclave_cc.errors import EnvironmentFault, PeerError, UsageError
from enclave_cc.owner.audit import kinds
from enclave_cc.owner.audit.export import DatabaseSource, compose_export
from enclave_cc.owner.audit.kinds import Draft
from enclave_cc.owner.audit.log import AuditLog, Settings
from enclave_cc.owner.audit.verification import Verified, verify_export
from enclave_cc.owner.storage import migration
from enclave_cc.owner.storage.database import Connection, Database
from enclave_cc.owner.storage.settings import DatabaseSettings, open_database
from enclave_cc.owner.storage.sqlite import SqliteDatabase
from enclave_cc.wire.audit.entry import Entry
from enclave_cc.wire.tlog.checkpoint import Checkpoint, verify_checkpoint
from enclave_cc.wire.tlog.note import Note, NoteSigner
from enclave_cc.wire.tlog.tree import CompactRange

SIGNER = NoteSigner("enclave-cc.audit/test", ed25519.SigningKey.generate())
KEYS = [SIGNER.verifier]


def draft(number: int = 0, *, subject: str | None = None, **more: Any) -> Draft:
    return Draft.make("resource-set", {"number": number, **more}, subject=subject)


def verify(database: Database, log: AuditLog, *, kept: tuple[bytes, ...] = ()) -> Verified:
    return verify_export(compose_export(DatabaseSource(database), log.checkpoint()), KEYS, kept)


def read_entries(database: Database) -> list[Entry]:
    with database.read() as db:
        return [Entry.parse(bytes(row[0])) for row in db.execute("SELECT entry FROM audit_entry ORDER BY leaf_index")]


def test_an_empty_log_verifies(database: Database) -> None:
    log = AuditLog(database, SIGNER)
    assert verify(database, log).entries == 0
    assert AuditLog(database, SIGNER).origin == SIGNER.name


def test_appended_entries_are_chained_numbered_and_signed(database: Database) -> None:
    log = AuditLog(database, SIGNER, now=lambda: 1700000000.7)
    receipts = [log.append(draft(i, subject=f"acme/key/{i % 3}")) for i in range(10)]
    receipts.append(log.append(draft(10)))
    assert [receipt.index for receipt in receipts] == list(range(11))
    entries = read_entries(database)
    tree = CompactRange()
    for entry, receipt in zip(entries, receipts, strict=True):
        assert entry.hash() == receipt.leaf
        assert entry.at == 1700000000
        tree.append(receipt.leaf)
    assert [entry.previous for entry in entries] == [bytes(32), *(receipt.leaf for receipt in receipts[:-1])]
    assert [entry.subject.number for entry in entries if entry.subject] == [1, 1, 1, 2, 2, 2, 3, 3, 3, 4]
    assert len({entry.salt for entry in entries}) == 11
    checkpoint = verify_checkpoint(log.checkpoint(), KEYS)
    assert (checkpoint.size, checkpoint.root) == (11, tree.root())
    assert log.checkpoint() == log.checkpoint()
    assert verify(database, log).entries == 11


def test_checkpoints_are_signed_as_time_goes_by(database: Database) -> None:
    clock = [1000.0]
    log = AuditLog(database, SIGNER, settings=Settings(checkpoint_every=60), now=lambda: clock[0])
    for i in range(20):
        clock[0] += 20
        log.append(draft(i))
    found = verify(database, log)
    assert found.older == (1, 4, 7, 10, 13, 16, 19, 20)


@pytest.mark.parametrize("count", [255, 256, 257, 700])
def test_proofs_over_tiles(database: Database, count: int) -> None:
    log = AuditLog(database, SIGNER)
    half = count // 2
    append_many(log, [draft(i, subject="acme/key/one" if i % 97 == 0 else None) for i in range(half)])
    kept = log.checkpoint()
    append_many(log, [draft(i, subject="acme/key/one" if i % 97 == 0 else None) for i in range(half, count)])
    for prefix in ("acme", "acme/key/one", ""):
        lines = compose_export(DatabaseSource(database), log.checkpoint(), prefix=prefix, kept=[kept])
        found = verify_export(lines, KEYS, [kept])
        assert found.entries == len(range(0, count, 97))
        assert found.older == (half,)
    with database.read() as db:
        assert db.execute("SELECT count(*) FROM audit_node").fetchone()[0] == count // 256
    # Another process sees the same tree.
    assert verify_checkpoint(AuditLog(database, SIGNER).checkpoint(), KEYS).size == count


def test_pages_of_large_entries_are_short(database: Database) -> None:
    log = AuditLog(database, SIGNER)
    for _ in range(7):
        log.append(draft(text="x" * 400_000, subject="acme/key/one"))
    source = DatabaseSource(database)
    assert [len(source.read_log(7, begin)) for begin in (0, 2, 6)] == [3, 2, 1]  # with the first entry's checkpoint
    assert len(source.read_excerpt("acme", 7, -1)) == 2
    for prefix in (None, "acme"):
        assert verify_export(compose_export(source, log.checkpoint(), prefix=prefix), KEYS).entries == 7


def test_excerpts_do_not_read_the_whole_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On SQLite, which tells its plan in words and follows it."""
    database = SqliteDatabase(tmp_path / "kbs.db", create=True)
    migration.migrate(database)
    plans: list[str] = []
    real = database.read

    @contextmanager
    def explain() -> Iterator[Any]:
        with real() as db:

            class Explaining:
                def execute(self, sql: str, parameters: Any = ()) -> Any:
                    plans.extend(row[3] for row in db.execute(f"EXPLAIN QUERY PLAN {sql}", parameters))
                    return db.execute(sql, parameters)

            yield Explaining()

    monkeypatch.setattr(database, "read", explain)
    DatabaseSource(database).read_excerpt("acme/key", 10, -1)
    database.close()
    searches = [plan for plan in plans if "audit_entry" in plan]
    assert len([plan for plan in searches if "audit_entry_subject" in plan]) == 4
    assert not [plan for plan in plans if "SCAN audit_entry" in plan or "rowid>" in plan]


def append_many(log: AuditLog, drafts: list[Draft]) -> None:
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(log.append, drafts))


def test_threads_that_append_together_share_transactions(database: Database) -> None:
    writes = 0
    real = database.write

    @contextmanager
    def count(**arguments: Any) -> Iterator[Any]:
        nonlocal writes
        writes += 1
        with real(**arguments) as db:
            yield db

    log = AuditLog(database, SIGNER)
    database.write = count  # type: ignore[method-assign]
    with ThreadPoolExecutor(32) as pool:
        receipts = list(pool.map(lambda i: log.append(draft(i)), range(640)))
    database.write = real  # type: ignore[method-assign]
    assert sorted(receipt.index for receipt in receipts) == list(range(640))
    assert writes < 640
    assert verify(database, log).entries == 640
    by_index = {receipt.index: receipt.leaf for receipt in receipts}
    assert all(by_index[entry.index] == entry.hash() for entry in read_entries(database))


def test_many_instances_append_to_one_log(database: Database, database_settings: DatabaseSettings, tmp_path: Path) -> None:
    others = [open_database(database_settings, tmp_path) for _ in range(3)]
    logs = [AuditLog(each, SIGNER) for each in others]
    with ThreadPoolExecutor(12) as pool:
        receipts = list(pool.map(lambda i: logs[i % 3].append(draft(i, subject=f"acme/key/{i % 5}")), range(240)))
    assert sorted(receipt.index for receipt in receipts) == list(range(240))
    assert verify(database, AuditLog(database, SIGNER)).entries == 240
    for each in others:
        each.close()


def test_what_is_kept_beside_an_entry_is_in_its_transaction(database: Database) -> None:
    log = AuditLog(database, SIGNER)

    def keep(name: str) -> Callable[[Connection, int], bool]:
        def insert(db: Connection, index: int) -> bool:
            values = (name, index)
            return db.execute("INSERT INTO generation (topic, number) VALUES (?, ?) ON CONFLICT DO NOTHING", values).rowcount == 1

        return insert

    def read() -> dict[str, int]:
        with database.read() as db:
            return dict(db.execute("SELECT topic, number FROM generation").fetchall())

    def fail(db: Connection, index: int) -> bool:
        assert keep("failed")(db, index)
        raise UsageError("usage", "x")

    log.append(draft(0))
    with ThreadPoolExecutor(16) as pool:
        receipts = list(pool.map(lambda i: log.append_with(draft(i), keep(f"t{i % 8}")), range(64)))
    appended = [receipt for receipt in receipts if receipt is not None]
    assert sorted(receipt.index for receipt in appended) == list(range(1, 9))
    assert sorted(read().values()) == list(range(1, 9))
    with pytest.raises(EnvironmentFault):
        log.append_with(draft(), fail)
    assert len(read()) == 8
    assert verify(database, log).entries == 9


class Failing:
    """A database whose writes fail or hang on command."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.failure: BaseException | None = None
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.database, name)

    @contextmanager
    def write(self, **arguments: Any) -> Iterator[Any]:
        self.entered.set()
        self.gate.wait(60)
        if self.failure is not None:
            raise self.failure
        with self.database.write(**arguments) as db:
            yield db


def test_a_failed_group_fails_for_all_and_the_log_goes_on(database: Database) -> None:
    failing = Failing(database)
    log = AuditLog(failing, SIGNER)  # type: ignore[arg-type]
    log.append(draft(0))
    failing.failure = EnvironmentFault("disk-full", "the KBS database cannot grow")
    failing.gate.clear()
    with ThreadPoolExecutor(8) as pool:
        futures = [pool.submit(log.append, draft(i)) for i in range(8)]
        failing.entered.wait(60)
        failing.gate.set()
        errors = [future.exception(60) for future in futures]
    assert {error.code for error in errors} == {"disk-full"}  # type: ignore[union-attr]
    assert len({id(error) for error in errors}) == 8
    failing.failure = PeerError("audit-broken", "the head")
    with pytest.raises(EnvironmentFault, match="environment: the audit log cannot be written"):
        log.append(draft(1))
    failing.failure = None
    assert log.append(draft(2)).index == 1
    assert verify(database, log).entries == 2


def test_who_waits_too_long_gives_up_and_takes_nobody_along(database: Database) -> None:
    failing = Failing(database)
    log = AuditLog(failing, SIGNER, settings=Settings(deadline=0.2))  # type: ignore[arg-type]
    failing.entered.clear()
    failing.gate.clear()
    with ThreadPoolExecutor(8) as pool:
        leader = pool.submit(log.append, draft(0))
        failing.entered.wait(60)
        late = [pool.submit(log.append, draft(i)) for i in range(1, 5)]
        for future in late:
            error = future.exception(60)
            assert isinstance(error, EnvironmentFault) and error.code == "deadline"
        failing.gate.set()
        assert leader.result(60).index == 0
    assert log.append(draft(5)).index == 1
    assert [entry.document["number"] for entry in read_entries(database)] == [0, 5]


@pytest.mark.parametrize(
    "document",
    [
        {"x": 1.5},
        {"x": 1 << 53},
        {"x": b"bytes"},
        {"x": "\ud800"},
        {"ä": 1},
        {1: 2},
        {"x": "y" * 600_000},
        {"x": [[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]},
    ],
)
def test_what_no_entry_can_hold_is_refused_before_it_is_queued(document: dict[Any, Any]) -> None:
    with pytest.raises(UsageError):
        Draft.make("start", document)


@pytest.mark.parametrize(
    ("kind", "subject"), [("Start", None), ("", None), ("start", "a//b"), ("start", "a/b/c/d"), ("start", 'a"')]
)
def test_kinds_and_paths_are_checked(kind: str, subject: str | None) -> None:
    with pytest.raises(UsageError):
        Draft.make(kind, {}, subject=subject)


def test_another_directorys_key_is_refused(database: Database) -> None:
    AuditLog(database, SIGNER).append(draft())
    other = NoteSigner("enclave-cc.audit/other", ed25519.SigningKey.generate())
    with pytest.raises(UsageError, match="bad-config"):
        AuditLog(database, other)


def test_a_new_key_goes_on_where_the_old_one_stopped(database: Database) -> None:
    log = AuditLog(database, SIGNER)
    log.append(draft())
    old = log.checkpoint()
    renewed = NoteSigner(SIGNER.name, ed25519.SigningKey.generate())
    with pytest.raises(PeerError, match="audit-signature"):
        AuditLog(database, renewed)
    log = AuditLog(database, renewed, keys=KEYS)
    new = log.checkpoint()
    assert Note.parse(old).text == Note.parse(new).text
    assert old != new
    log.append(draft())
    lines = list(compose_export(DatabaseSource(database), log.checkpoint()))
    assert verify_export(lines, [*KEYS, renewed.verifier], [old, new]).entries == 2
    with pytest.raises(PeerError, match="audit-signature"):
        verify_export(lines, [renewed.verifier])


@pytest.mark.parametrize(
    ("sql", "code"),
    [
        ("UPDATE audit_head SET size = size - 1", "audit-"),
        ("UPDATE audit_head SET last = tree", "audit-broken"),
        ("UPDATE audit_entry SET leaf_hash = (SELECT last FROM audit_head) WHERE leaf_index = 3", "audit-broken"),
        ("DELETE FROM audit_entry WHERE leaf_index = 9", "audit-broken"),
        ("DELETE FROM audit_entry WHERE leaf_index = 4", "audit log lacks hashes"),
        (
            "INSERT INTO audit_entry SELECT 10, leaf_hash, NULL, NULL, NULL, NULL, entry FROM audit_entry WHERE leaf_index = 9",
            "audit-broken",
        ),
        ("UPDATE audit_head SET tree = last", "audit-broken"),
    ],
)
def test_a_log_that_was_meddled_with_does_not_open(database: Database, sql: str, code: str) -> None:
    log = AuditLog(database, SIGNER)
    for i in range(10):
        log.append(draft(i))
    log.checkpoint()
    with database.write() as db:
        db.execute(sql)
    with pytest.raises((PeerError, EnvironmentFault), match=code):
        AuditLog(database, SIGNER)


def test_a_log_that_was_rolled_back_behind_its_checkpoint_does_not_open(database: Database) -> None:
    log = AuditLog(database, SIGNER)
    log.append(draft(0))
    with database.read() as db:
        head = db.execute("SELECT size, tree, last FROM audit_head").fetchone()
    log.append(draft(1))
    log.checkpoint()
    with database.write() as db:
        db.execute("DELETE FROM audit_entry WHERE leaf_index > 0")
        db.execute("UPDATE audit_head SET size = ?, tree = ?, last = ?", tuple(head))
    with pytest.raises(PeerError, match="audit-truncated"):
        AuditLog(database, SIGNER)


def test_a_checkpoint_of_more_than_there_is_shows_a_rollback(database: Database) -> None:
    log = AuditLog(database, SIGNER)
    log.append(draft(0))
    kept = Checkpoint(SIGNER.name, 5, bytes(32)).sign(SIGNER).encode()
    with pytest.raises(PeerError, match="audit-truncated"):
        verify(database, log, kept=(kept,))


def test_every_kind_is_told_in_the_format() -> None:
    text = (Path(__file__).resolve().parents[4] / "docs/formats/audit.md").read_text()
    told = set(re.findall(r"`([a-z-]+)`", text))
    stems = ("resource", "policy", "reference-values", "reference-signer", "root")
    told |= {f"{stem}{word}" for stem in stems for word in told if word.startswith("-")}
    names = [value for name, value in vars(kinds).items() if name.isupper() and isinstance(value, str)]
    assert len(names) > 20
    assert set(names) <= told
