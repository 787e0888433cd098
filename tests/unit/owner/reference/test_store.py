"""The reference value store, on SQLite and PostgreSQL: retirement, versions, signers."""

from __future__ import annotations

import pytest

from enclave_cc.crypto.signing_key import SigningKey
from enclave_cc.errors import UsageError
from enclave_cc.owner.reference.store import ReferenceStore
from enclave_cc.owner.reference.values import ACTIVE, EXPIRED, RETIRED, ReferenceValue
from enclave_cc.owner.storage.database import Database


@pytest.fixture
def store(database: Database) -> ReferenceStore:
    made = ReferenceStore(database, now=lambda: 1000)
    made.add([ReferenceValue("m", "aa", source={"bundle": "agent"}), ReferenceValue("m", "bb", expires=900)], by="ann")
    return made


def refused(code: str, call: object, *arguments: object, **members: object) -> UsageError:
    with pytest.raises(UsageError) as caught:
        call(*arguments, **members)  # type: ignore[operator]
    assert caught.value.code == code
    return caught.value


def test_a_retired_value_is_remembered(store: ReferenceStore) -> None:
    assert store.query("m") == ["aa"]
    assert store.retire("m", "aa", by="bob", reason="CVE-1") == 1
    assert store.query("m") is None
    retired, expired = store.history("m")
    assert retired.retired is not None
    assert (retired.retired.at, retired.retired.by, retired.retired.reason) == (1000, "bob", "CVE-1")
    assert (retired.state(1000), expired.state(1000), expired.state(800)) == (RETIRED, EXPIRED, ACTIVE)
    assert (retired.added_by, retired.source, retired.version) == ("ann", {"bundle": "agent"}, 1)
    refused("wrong-state", store.retire, "m", "aa")
    refused("not-found", store.retire, "m", "cc")
    assert store.restore("m", "aa") == 1
    assert store.query("m") == ["aa"]
    refused("wrong-state", store.restore, "m", "aa")
    refused("not-found", store.restore, "x")


def test_adding_once_more_does_not_take_it_back(store: ReferenceStore) -> None:
    store.retire("m", "aa", by="bob", reason="CVE-1")
    error = refused("wrong-state", store.add, [ReferenceValue("other", "x"), ReferenceValue("m", "aa")])
    assert "bob" in error.what
    assert "restore" in error.fix
    assert store.query("other") is None  # all or none
    refused("wrong-state", store.replace, [ReferenceValue("m", "aa")])
    store.replace([ReferenceValue("m", "cc")])
    assert store.query("m") == ["cc"]
    assert [value.value for value in store.history("m")] == ["aa", "cc"]


def test_all_of_a_name(store: ReferenceStore) -> None:
    assert store.retire("m") == 2
    assert store.restore("m") == 2
    assert store.remove("m") == 2
    assert store.history("m") == []


def test_each_change_of_a_name_counts(store: ReferenceStore) -> None:
    store.add([ReferenceValue("m", "cc"), ReferenceValue("n", 1, member=False)])
    assert {value.value: value.version for value in store.list()} == {"aa": 1, "bb": 1, "cc": 2, 1: 1}
    store.remove("m", "cc")
    store.add([ReferenceValue("m", "cc")])
    assert next(value for value in store.history("m") if value.value == "cc").version == 4  # a number never comes twice


def test_a_whole_value_replaces_what_is_active(store: ReferenceStore) -> None:
    store.retire("m", "aa")
    store.add([ReferenceValue("m", 5, member=False)])
    assert store.query("m") == 5
    assert len(store.history("m")) == 2


def test_signers(store: ReferenceStore) -> None:
    one, two = SigningKey.generate().public, SigningKey.generate().public
    store.add_signer("ci", one, by="ann")
    store.add_signer("ci", one)
    refused("already-exists", store.add_signer, "ci", two)
    refused("already-exists", store.add_signer, "other", one)
    store.add_signer("lab", two)
    assert [(each.name, each.key.key_id, each.added_by) for each in store.list_signers()] == [
        ("ci", one.key_id, "ann"),
        ("lab", two.key_id, ""),
    ]
    store.remove_signer("ci")
    refused("not-found", store.remove_signer, "ci")
