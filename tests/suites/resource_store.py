"""What every `ResourceStore` must hold to. A back-end's test module subclasses `ResourceStoreSuite` and gives `store`.

`reopen` makes a second store over the same state, as a restarted KBS would, or one that runs beside the first.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from enclave_cc.crypto.secret import Secret
from enclave_cc.errors import EnclaveCcError, PeerError, UsageError
from enclave_cc.owner.resources.store import KEPT_VERSIONS, MAX_TAGS, MAX_VALUE, ResourceStore
from enclave_cc.wire.rcar.uri import ResourcePath

A, B = ResourcePath.parse("default/key/a"), ResourcePath.parse("default/key/b")
Reopen = Callable[[], ResourceStore]


def refused(act: Callable[[], Any]) -> EnclaveCcError:
    with pytest.raises(EnclaveCcError) as caught:
        act()
    return caught.value


def names(store: ResourceStore, *arguments: Any, **options: Any) -> list[str]:
    return [str(info.path) for info in store.list(*arguments, **options).items]


class ResourceStoreSuite:
    @pytest.fixture
    def store(self) -> ResourceStore:
        raise NotImplementedError

    @pytest.fixture
    def reopen(self) -> Reopen:
        raise NotImplementedError

    # values and versions

    def test_put_then_get(self, store: ResourceStore) -> None:
        before = int(time.time())
        assert store.put(A, Secret(b"one")) == 1
        found = store.get(A)
        assert (found.path, found.version, found.value) == (A, 1, Secret(b"one"))
        assert before - 1 <= found.created <= time.time() + 1

    @pytest.mark.parametrize("value", [b"", b"\0" * 32, bytes(range(256)) * 4096, b"\r\n\x1b[2J'\"\\{}", os.urandom(1000)])
    def test_values_are_bytes(self, store: ResourceStore, value: bytes) -> None:
        store.put(A, Secret(value))
        assert store.get(A).value == Secret(value)
        assert store.list().items[0].size == len(value)

    def test_versions_count_up_and_old_ones_stay(self, store: ResourceStore) -> None:
        assert [store.put(A, Secret(bytes([n]))) for n in range(3)] == [1, 2, 3]
        assert store.get(A).value == Secret(b"\2")
        assert [store.get(A, n + 1).value for n in range(3)] == [Secret(bytes([n])) for n in range(3)]
        for version in (0, -1, 4, 1 << 40, 1 << 70):
            assert refused(lambda version=version: store.get(A, version)).code == "not-found"

    def test_only_so_many_versions_stay(self, store: ResourceStore) -> None:
        for number in range(KEPT_VERSIONS + 3):
            assert store.put(A, Secret(bytes([number]))) == number + 1
        for gone in (1, 2, 3):
            assert refused(lambda gone=gone: store.get(A, gone)).code == "not-found"
        assert store.get(A, 4).value == Secret(b"\3")
        assert [each.version for each in store.history(A)] == list(range(KEPT_VERSIONS + 3, 3, -1))

    def test_absent(self, store: ResourceStore) -> None:
        acts: list[Callable[[], Any]] = [
            lambda: store.get(A),
            lambda: store.get(A, 1),
            lambda: store.delete(A),
            lambda: store.history(A),
            lambda: store.tag(A, {"a": "b"}),
        ]
        store.put(ResourcePath.parse("default/key/aa"), Secret(b"a neighbour"))
        assert [refused(act).code for act in acts] == ["not-found"] * 5

    def test_deleted_values_are_gone_and_versions_go_on(self, store: ResourceStore) -> None:
        for value in (b"one", b"two"):
            store.put(A, Secret(value), tags={"stage": "test"})
        store.put(B, Secret(b"other"))
        store.delete(A)
        for version in (None, 1, 2):
            assert refused(lambda version=version: store.get(A, version)).code == "not-found"
        assert refused(lambda: store.delete(A)).code == "not-found"
        assert refused(lambda: store.tag(A, {"a": "b"})).code == "not-found"
        assert names(store) == [str(B)]
        assert store.put(A, Secret(b"three")) == 3
        assert store.get(A).value == Secret(b"three")
        assert refused(lambda: store.get(A, 2)).code == "not-found"
        assert [dict(info.tags) for info in store.list().items] == [{}, {}]
        store.delete(A)
        store.put(A, Secret(b"four"))
        assert store.get(A).version == 4

    def test_too_large(self, store: ResourceStore) -> None:
        store.put(A, Secret(os.urandom(MAX_VALUE)))
        assert refused(lambda: store.put(A, Secret(bytes(MAX_VALUE + 1)))).code == "too-large"
        assert store.get(A).version == 1
        assert len(store.get(A).value) == MAX_VALUE

    # who and when

    def test_history_tells_who_and_when(self, store: ResourceStore) -> None:
        store.put(A, Secret(b"12"), author="alice")
        store.put(A, Secret(b"1234"), author="bob ünder")
        store.delete(A, author="carol")
        store.put(A, Secret(b""))
        third, second, first = store.history(A)
        assert (third.version, third.size, third.author, third.removed, third.removed_by) == (3, 0, "", None, "")
        assert (second.version, second.size, second.author, second.removed_by) == (2, 4, "bob ünder", "carol")
        assert (first.version, first.size, first.author, first.removed_by) == (1, 2, "alice", "carol")
        assert first.removed is not None and abs(first.removed - time.time()) < 600
        assert first.created <= second.created <= third.created
        assert store.list().items[0].author == ""

    def test_a_deleted_path_keeps_its_history(self, store: ResourceStore) -> None:
        store.put(A, Secret(b"1"), author="alice")
        store.delete(A, author="bob")
        (only,) = store.history(A)
        assert (only.author, only.removed_by) == ("alice", "bob")

    def test_an_authors_name_is_any_text(self, store: ResourceStore) -> None:
        for author in ("x" * 5000, "\u202e\0\n\\\"'", "é" * 300, "\ud800"):
            store.put(A, Secret(b"1"), author=author)
            found = store.history(A)[0].author
            assert found.isprintable() and len(found.encode()) <= 100
        store.delete(A, author="é" * 300)
        assert store.history(A)[0].removed_by == "é" * 50

    # listing

    def test_list_is_sorted_and_shows_no_value(self, store: ResourceStore) -> None:
        order = ["A/a/a", "a-b/a/a", "a.b/a/a", "a/a/z", "a/z/a", "z/a/A", "z/a/a", "z/a/a-b", "z/a/a.b"]
        for name in reversed(order):
            store.put(ResourcePath.parse(name), Secret(b"12345"))
        store.put(ResourcePath.parse("a/a/z"), Secret(b"123456"))
        page = store.list()
        assert [str(info.path) for info in page.items] == order
        assert page.next is None
        assert [(info.version, info.size) for info in page.items[3:5]] == [(2, 6), (1, 5)]
        assert "12345" not in repr(page)

    @pytest.mark.parametrize(
        ("prefix", "found"),
        [
            ("", ["a/b/c", "a/b/cc", "a/bb/c", "aa/b/c"]),
            ("a", ["a/b/c", "a/b/cc", "a/bb/c", "aa/b/c"]),
            ("a/", ["a/b/c", "a/b/cc", "a/bb/c"]),
            ("a/b", ["a/b/c", "a/b/cc", "a/bb/c"]),
            ("a/b/", ["a/b/c", "a/b/cc"]),
            ("a/b/c", ["a/b/c", "a/b/cc"]),
            ("a/b/cc", ["a/b/cc"]),
            ("a/b/c/", []),
            ("A", []),
            ("b", []),
            ("%", []),
            ("_/_/_", []),
            ("../", []),
            ("a/../a", []),
            ("' OR 1=1 --", []),
            ("a\0", []),
            ("\U0001f511", []),
            ("a/b/" + "c" * 3000, []),
        ],
    )
    def test_list_by_prefix(self, store: ResourceStore, prefix: str, found: list[str]) -> None:
        for name in ("a/b/c", "a/b/cc", "a/bb/c", "aa/b/c"):
            store.put(ResourcePath.parse(name), Secret(b"1"))
        assert names(store, prefix) == found

    def test_pages(self, store: ResourceStore) -> None:
        every = sorted(f"{r}/{t}/{n}" for r in ("a", "a-b", "b") for t in ("k", "k.k") for n in range(3))
        for name in every:
            store.put(ResourcePath.parse(name), Secret(b"1"))
        store.delete(ResourcePath.parse(every.pop(7)))
        for limit in (1, 2, 5, len(every), 1000):
            seen: list[str] = []
            after: str | None = ""
            while after is not None:
                page = store.list(after=after, limit=limit)
                assert 1 <= len(page.items) <= limit
                seen += [str(info.path) for info in page.items]
                after = page.next
            assert seen == every
        assert names(store, "a/", after="a/k/1") == [name for name in every if name.startswith("a/") and name > "a/k/1"]
        assert names(store, after="nothing/such/here") == []
        assert names(store, after="a/k/00") == [name for name in every if name > "a/k/00"]
        for limit in (0, -1, 1001):
            assert refused(lambda limit=limit: store.list(limit=limit)).code == "usage"
        for wrong in ("a\0", "\ud800", "é", "a'", "a" * 5000):
            assert refused(lambda wrong=wrong: store.list(after=wrong)).code == "usage"

    # tags

    def test_tags_are_set_with_a_version_and_afterwards(self, store: ResourceStore) -> None:
        store.put(A, Secret(b"1"), tags={"team": "red", "stage": "test"})
        assert dict(store.list().items[0].tags) == {"stage": "test", "team": "red"}
        store.put(A, Secret(b"2"))
        assert dict(store.list().items[0].tags) == {"stage": "test", "team": "red"}
        info = store.tag(A, {"stage": "live", "team": None, "absent": None, "region/eu.1-a": ""})
        assert (info.version, dict(info.tags)) == (2, {"region/eu.1-a": "", "stage": "live"})
        assert store.list().items[0] == info
        store.put(A, Secret(b"3"), tags={"only": "é 'x' {}"})
        assert dict(store.list().items[0].tags) == {"only": "é 'x' {}"}
        store.put(A, Secret(b"4"), tags={})
        assert dict(store.list().items[0].tags) == {}
        assert store.get(A).value == Secret(b"4")

    def test_list_by_tag(self, store: ResourceStore) -> None:
        for number in range(6):
            tags = {"even": str(number % 2 == 0), **({"last": "yes"} if number == 5 else {})}
            store.put(ResourcePath.parse(f"a/k/{number}"), Secret(b"1"), tags=tags)
        assert names(store, tags={"even": "True"}) == ["a/k/0", "a/k/2", "a/k/4"]
        assert names(store, tags={"even": "False", "last": None}) == ["a/k/5"]
        assert names(store, tags={"even": "True", "last": "yes"}) == []
        assert names(store, tags={"even": None}, after="a/k/3") == ["a/k/4", "a/k/5"]
        assert names(store, "a/k/2", tags={"even": "True"}) == ["a/k/2"]
        page = store.list(tags={"even": "True"}, limit=2)
        assert [str(info.path) for info in page.items] == ["a/k/0", "a/k/2"]
        assert page.next is not None
        assert names(store, tags={"even": "True"}, after=page.next) == ["a/k/4"]
        store.tag(ResourcePath.parse("a/k/0"), {"even": None})
        store.delete(ResourcePath.parse("a/k/2"))
        assert names(store, tags={"even": "True"}) == ["a/k/4"]
        assert names(store, tags={"' OR 1=1 --": None}) == []

    @pytest.mark.parametrize(
        "tags",
        [
            *({"": "x"}, {"a b": "x"}, {"é": "x"}, {"k" * 64: "x"}, {"k": "x" * 257}, {"k": "a\nb"}, {"k": "\0"}, {"-k": "x"}),
            {f"k{n}": "x" for n in range(MAX_TAGS + 1)},
        ],
    )
    def test_tags_that_are_refused(self, store: ResourceStore, tags: dict[str, str]) -> None:
        store.put(A, Secret(b"1"), tags={"kept": "yes"})
        assert refused(lambda: store.put(A, Secret(b"2"), tags=tags)).code == "usage"
        assert refused(lambda: store.tag(A, tags)).code == "usage"
        assert store.get(A).version == 1
        assert dict(store.list().items[0].tags) == {"kept": "yes"}

    def test_the_most_that_fits(self, store: ResourceStore) -> None:
        tags = {f"{n:02}" + "k" * 61: "é" * 128 for n in range(MAX_TAGS)}
        for _ in range(KEPT_VERSIONS + 1):
            store.put(A, Secret(b"1"), tags=tags, author='"' * 100)
        store.delete(A, author="\\" * 100)
        for _ in range(3):
            store.put(A, Secret(b"1"), tags=tags, author='"' * 100)
        assert dict(store.list().items[0].tags) == tags
        assert refused(lambda: store.tag(A, {"one-more": "x"})).code == "usage"

    # names

    @pytest.mark.parametrize(
        "name", ["a/b/A", "A/B/c", "a/b/con", "a/b/c~", "a/b/+a", "a/b/c.", "x" * 255 + "/" + "Y" * 255 + "/" + "z.-_" * 63]
    )
    def test_each_name_is_its_own(self, store: ResourceStore, name: str) -> None:
        """Also on a file system that folds case, and with names that a back-end keeps for itself."""
        for number, other in enumerate(("a/b/a", "a/b/c", "head/1/2", "values/data/metadata")):
            store.put(ResourcePath.parse(other), Secret(bytes([number])))
        try:
            path = ResourcePath.parse(name)
        except PeerError:
            return
        store.put(path, Secret(b"mine"))
        assert store.get(path).value == Secret(b"mine")
        assert store.get(ResourcePath.parse("a/b/a")).value == Secret(b"\0")
        assert name in names(store)
        assert names(store, name) == [name]
        store.delete(path)
        assert store.get(ResourcePath.parse("a/b/a")).value == Secret(b"\0")
        assert len(names(store)) == 4

    # many at once, and afterwards

    def test_what_was_put_is_there_after_a_restart(self, store: ResourceStore, reopen: Reopen) -> None:
        store.put(A, Secret(b"one"), author="alice", tags={"a": "b"})
        store.put(B, Secret(b"gone"))
        store.delete(B, author="bob")
        again = reopen()
        assert again.get(A).value == Secret(b"one")
        assert again.list() == store.list()
        assert names(again) == [str(A)]
        assert again.history(A) == store.history(A)
        assert again.history(B) == store.history(B)
        assert again.put(B, Secret(b"new")) == 2

    def test_many_writers(self, store: ResourceStore, reopen: Reopen) -> None:
        """Two instances, six threads, one path: every number is given once, to the value that it reads back."""
        other = reopen()
        versions: dict[int, bytes] = {}

        def write(number: int) -> None:
            for turn in range(5):
                value = bytes([number, turn])
                versions[(store if number % 2 else other).put(A, Secret(value), author=str(number))] = value

        threads = [threading.Thread(target=write, args=(n,)) for n in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(versions) == list(range(1, 31))
        assert store.get(A).version == other.get(A).version == 30
        for each in store.history(A):
            assert store.get(A, each.version).value == Secret(versions[each.version])
            assert each.author == str(versions[each.version][0])

    def test_readers_beside_writers(self, store: ResourceStore, reopen: Reopen) -> None:
        """A reader sees a whole version or none, whatever happens beside it."""
        reader, done = reopen(), threading.Event()
        faults: list[BaseException] = []

        def read() -> None:
            last = 0
            while not done.is_set():
                try:
                    found = reader.get(A)
                    assert found.value == Secret(bytes([found.version]) * 1000)
                    assert found.version >= last
                    last = found.version
                    reader.list()
                    reader.history(A)
                except UsageError as error:
                    assert error.code == "not-found"
                except BaseException as error:
                    faults.append(error)
                    return

        threads = [threading.Thread(target=read) for _ in range(2)]
        for thread in threads:
            thread.start()
        for number in range(1, 41):
            assert store.put(A, Secret(bytes([number]) * 1000)) == number
            if number % 10 == 0:
                store.delete(A)
        done.set()
        for thread in threads:
            thread.join()
        assert faults == []

    def test_tags_and_values_change_side_by_side(self, store: ResourceStore, reopen: Reopen) -> None:
        other = reopen()
        store.put(A, Secret(b"0"))

        def tag(number: int) -> None:
            for turn in range(4):
                other.tag(A, {f"k{number}-{turn}": "x"})

        threads = [threading.Thread(target=tag, args=(n,)) for n in range(3)]
        for thread in threads:
            thread.start()
        for _ in range(5):
            store.put(A, Secret(b"1"))
        for thread in threads:
            thread.join()
        assert len(store.list().items[0].tags) == 12
        assert store.get(A).version == 6
