"""What every `ResourceStore` must hold to. A back-end's test module subclasses `ResourceStoreSuite` and gives `store`.

`reopen` makes a second store over the same state, as a restarted KBS would.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from enclave_cc.crypto.secret import Secret
from enclave_cc.errors import UsageError
from enclave_cc.owner.resources.store import MAX_VALUE, ResourceStore
from enclave_cc.wire.rcar.uri import ResourcePath

A, B = ResourcePath.parse("default/key/a"), ResourcePath.parse("default/key/b")


class ResourceStoreSuite:
    @pytest.fixture
    def store(self) -> ResourceStore:
        raise NotImplementedError

    @pytest.fixture
    def reopen(self) -> Callable[[], ResourceStore]:
        raise NotImplementedError

    def test_put_then_get(self, store: ResourceStore) -> None:
        assert store.put(A, Secret(b"one")) == 1
        found = store.get(A)
        assert (found.path, found.version, found.value) == (A, 1, Secret(b"one"))

    @pytest.mark.parametrize("value", [b"", b"\0" * 32, bytes(range(256)) * 4096])
    def test_values_are_bytes(self, store: ResourceStore, value: bytes) -> None:
        store.put(A, Secret(value))
        assert store.get(A).value == Secret(value)

    def test_versions_count_up_and_old_ones_stay(self, store: ResourceStore) -> None:
        assert [store.put(A, Secret(bytes([n]))) for n in range(3)] == [1, 2, 3]
        assert store.get(A).value == Secret(b"\2")
        assert store.get(A, 1).value == Secret(b"\0")
        with pytest.raises(UsageError) as refused:
            store.get(A, 4)
        assert refused.value.code == "not-found"

    def test_absent(self, store: ResourceStore) -> None:
        for act in (store.get, store.delete):
            with pytest.raises(UsageError) as refused:
                act(A)
            assert refused.value.code == "not-found"

    def test_deleted_values_are_gone_and_versions_go_on(self, store: ResourceStore) -> None:
        first = store.put(A, Secret(b"one"))
        store.put(B, Secret(b"other"))
        store.delete(A)
        for version in (None, first):
            with pytest.raises(UsageError):
                store.get(A, version)
        with pytest.raises(UsageError):
            store.delete(A)
        assert [info.path for info in store.list()] == [B]
        assert store.put(A, Secret(b"two")) > first
        assert store.get(A).value == Secret(b"two")

    def test_list_is_sorted_and_shows_no_value(self, store: ResourceStore) -> None:
        for name in ("z/a/a", "a/z/a", "a/a/z", "a/a/z"):
            store.put(ResourcePath.parse(name), Secret(b"12345"))
        listed = store.list()
        assert [str(info.path) for info in listed] == ["a/a/z", "a/z/a", "z/a/a"]
        assert [(info.version, info.size) for info in listed] == [(2, 5), (1, 5), (1, 5)]
        assert [str(info.path) for info in store.list("a/")] == ["a/a/z", "a/z/a"]
        assert store.list("nothing") == []
        assert "12345" not in repr(listed)

    def test_too_large(self, store: ResourceStore) -> None:
        store.put(A, Secret(bytes(MAX_VALUE)))
        with pytest.raises(UsageError) as refused:
            store.put(A, Secret(bytes(MAX_VALUE + 1)))
        assert refused.value.code == "too-large"
        assert store.get(A).version == 1

    def test_what_was_put_is_there_after_a_restart(self, store: ResourceStore, reopen: Callable[[], ResourceStore]) -> None:
        store.put(A, Secret(b"one"))
        store.put(B, Secret(b"gone"))
        store.delete(B)
        again = reopen()
        assert again.get(A).value == Secret(b"one")
        assert [info.path for info in again.list()] == [A]

    def test_many_writers(self, store: ResourceStore) -> None:
        versions: list[int] = []

        def write(number: int) -> None:
            for _ in range(5):
                versions.append(store.put(A, Secret(bytes([number]))))

        threads = [threading.Thread(target=write, args=(n,)) for n in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(versions) == list(range(1, 31))
        assert store.get(A).version == 30
