"""The policy store, on SQLite and PostgreSQL: versions, drafts, switches that are all or nothing, policies per path."""

from __future__ import annotations

import threading

import pytest

from enclave_cc.errors import UsageError
from enclave_cc.owner.kbs.policies import PolicyStore
from enclave_cc.owner.storage.database import Database

DENY = "package policy\ndefault allow := false\n"


def text(number: int) -> str:
    return f"package policy\ndefault allow := false\nnumber := {number}\n"


@pytest.fixture
def store(database: Database) -> PolicyStore:
    made = PolicyStore(database, now=lambda: 1000)
    made.install_defaults()
    return made


def refused(code: str, call: object, *arguments: object) -> None:
    with pytest.raises(UsageError) as caught:
        call(*arguments)  # type: ignore[operator]
    assert caught.value.code == code


def test_a_draft_is_not_active(store: PolicyStore) -> None:
    draft = store.add("resource-policy", text(1), by="ann", note="try")
    assert draft.version == 2
    assert store.get("resource-policy").version == 1
    assert store.get("resource-policy", 2).text == text(1)
    assert store.activate({"resource-policy": 2}, by="bob") == {"resource-policy": 2}
    assert store.get("resource-policy").version == 2
    newest, first = store.history("resource-policy")
    assert (newest.author, newest.note, newest.active, newest.activations) == ("ann", "try", True, ((1000, "bob"),))
    assert (first.active, len(first.activations)) == (False, 1)


def test_several_at_once_or_none(store: PolicyStore) -> None:
    store.add("resource-policy", text(1))
    store.add("default_cpu", 'package policy\ntrust_claims := {"hardware": 2}\n')
    refused("not-found", store.activate, {"resource-policy": 2, "default_cpu": 9})
    assert {state.id: state.version for state in store.list()} == {"resource-policy": 1, "default_cpu": 1}
    assert store.activate({"resource-policy": None, "default_cpu": None}) == {"resource-policy": 2, "default_cpu": 2}


def test_the_last_switch_is_taken_back(store: PolicyStore) -> None:
    refused("wrong-state", store.roll_back, "resource-policy")
    for number in (1, 2):
        store.set("resource-policy", text(number))
    assert store.roll_back("resource-policy") == 2
    assert store.get("resource-policy").text == text(1)
    assert store.roll_back("resource-policy") == 3
    refused("not-found", store.roll_back, "default_gpu")


def test_the_most_specific_release_policy_decides(store: PolicyStore) -> None:
    path = ("default", "key", "one")
    assert store.find_release(path).id == "resource-policy"
    for number, name in enumerate(("default", "default/key", "default/key/one", "other"), 1):
        store.set(f"resource-policy/{name}", text(number))
    assert store.find_release(path).id == "resource-policy/default/key/one"
    assert store.find_release(("default", "key", "two")).id == "resource-policy/default/key"
    assert store.find_release(("default", "cert", "x")).id == "resource-policy/default"
    assert store.find_release(("defaultx", "key", "one")).id == "resource-policy"
    store.deactivate("resource-policy/default/key/one")
    assert store.find_release(path).id == "resource-policy/default/key"
    refused("not-found", store.deactivate, "resource-policy/default/key/one")
    refused("usage", store.deactivate, "resource-policy")
    assert next(state for state in store.list() if state.id.endswith("one")).version is None
    store.activate({"resource-policy/default/key/one": 1})
    assert store.find_release(path).version == 1


def test_a_draft_of_a_path_decides_nothing(store: PolicyStore) -> None:
    store.add("resource-policy/default", text(1))
    assert store.find_release(("default", "key", "one")).id == "resource-policy"


@pytest.mark.parametrize(
    "policy_id",
    ["", "a b", "resource-policy/", "resource-policy/a/b/c/d", "resource-policy/../x", "resource-policy/.x", "x/y", "a" * 65, "ü"],
)
def test_ids_that_name_nothing(store: PolicyStore, policy_id: str) -> None:
    refused("usage", store.set, policy_id, DENY)


def test_nothing_changes_for_a_policy_that_does_not_compile(store: PolicyStore) -> None:
    refused("policy-invalid", store.set, "resource-policy", "package policy\nallow if {")
    refused("policy-invalid", store.add, "resource-policy", "package other\n")
    assert len(store.history("resource-policy")) == 1


def test_other_processes_see_a_switch_at_once(store: PolicyStore, database: Database) -> None:
    other = PolicyStore(database)
    assert other.get("resource-policy").version == 1
    store.set("resource-policy", DENY)
    assert other.get("resource-policy").version == 2
    assert other.get("resource-policy") is other.get("resource-policy")


def test_versions_of_many_writers_are_all_kept(store: PolicyStore) -> None:
    threads = [threading.Thread(target=store.set, args=("resource-policy", text(n))) for n in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    versions = [version.version for version in store.history("resource-policy")]
    assert versions == list(range(13, 0, -1))
    assert store.get("resource-policy").version in versions
