"""What the store keeps, and that a transaction happens whole or not at all."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from enclave_cc.errors import EnvironmentFault, UsageError
from enclave_cc.host.snapshotter.store import Store
from enclave_cc.wire.pb.snapshots import Kind


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(tmp_path / "db")
    yield opened
    opened.close()


def test_what_is_written_is_read_by_the_next_process(store: Store, tmp_path: Path) -> None:
    with store.transaction():
        store.insert("a", "", Kind.ACTIVE, {"k": "v", "empty": ""})
        base = store.commit("base", "a", "", {"x": "y"}, 10, 2)
        store.insert("top", "base", Kind.COMMITTED, {}, guest=True)
    other = Store(tmp_path / "db")
    assert other.get("base") == base
    assert (base.kind, base.labels, base.size, base.inodes, base.guest) == (Kind.COMMITTED, {"x": "y"}, 10, 2, False)
    top = other.get("top")
    assert (top.guest, top.parent, [s.name for s in other.ancestors(top)]) == (True, "base", ["base"])
    assert [s.name for s in other.read_all()] == ["base", "top"]
    assert other.find_labelled("x", "y") == [base]
    other.close()


def test_a_failed_transaction_leaves_nothing(store: Store) -> None:
    with pytest.raises(UsageError), store.transaction():
        store.insert("a", "", Kind.ACTIVE, {"k": "v"})
        store.insert("a", "", Kind.ACTIVE, {})
    assert store.read_all() == []
    with store.transaction():
        store.insert("a", "", Kind.ACTIVE, {})


def test_ids_are_not_used_again(store: Store) -> None:
    seen = set()
    for _ in range(3):
        with store.transaction():
            seen.add(store.insert("a", "", Kind.ACTIVE, {}).id)
        with store.transaction():
            store.remove("a")
    assert len(seen) == 3


def test_a_foreign_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no database at all, but long enough to look at" * 10)
    with pytest.raises(EnvironmentFault) as error:
        Store(tmp_path / "text")
    assert error.value.code == "environment"
    newer = sqlite3.connect(tmp_path / "newer")
    newer.execute("PRAGMA user_version=99")
    newer.close()
    with pytest.raises(EnvironmentFault, match="another version"):
        Store(tmp_path / "newer")


def test_a_full_disk_is_told(store: Store) -> None:
    store._database.execute("PRAGMA max_page_count=16")
    with pytest.raises(EnvironmentFault) as error, store.transaction():
        for number in range(1000):
            store.insert(f"a{number}", "", Kind.ACTIVE, {"k": "v" * 1000})
    assert error.value.code == "disk-full"
    assert store.read_all() == []
