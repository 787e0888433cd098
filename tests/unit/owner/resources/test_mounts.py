"""Several back-ends under one store: the suite, which mount wins, and listings that merge."""

from __future__ import annotations

from pathlib import Path

import pytest
from resource_store import Reopen, ResourceStoreSuite, names, refused

from enclave_cc.crypto.secret import Secret
from enclave_cc.owner.resources.database_store import DatabaseResourceStore
from enclave_cc.owner.resources.files import FileObjects
from enclave_cc.owner.resources.mounts import MountedStore
from enclave_cc.owner.resources.sealing import Keyring
from enclave_cc.owner.resources.store import ResourceStore
from enclave_cc.owner.resources.versioned import VersionedStore
from enclave_cc.owner.storage.database import Database
from enclave_cc.wire.rcar.uri import ResourcePath

KEYS = Keyring([Secret(bytes(32))])
# Where the suite's paths go: to the default, to one file store on two points, to another inside of it.
POINTS = {"default/key": "one", "a": "two", "a/k": "one", "a-b": "one", "z/a/a": "two", "a/b/cc": "three"}


def files(directory: Path) -> VersionedStore:
    return VersionedStore(FileObjects(directory), KEYS)


class TestMounted(ResourceStoreSuite):
    @pytest.fixture
    def store(self, database: Database, tmp_path: Path) -> ResourceStore:
        stores = {name: files(tmp_path / "stores" / name) for name in ("one", "two", "three")}
        return MountedStore(DatabaseResourceStore(database, KEYS), {point: stores[name] for point, name in POINTS.items()})

    @pytest.fixture
    def reopen(self, store: ResourceStore, database: Database, tmp_path: Path) -> Reopen:
        return lambda: type(self).store.__wrapped__(self, database, tmp_path)  # type: ignore[attr-defined, no-any-return]


def test_the_most_specific_mount_wins(tmp_path: Path) -> None:
    stores = {name: files(tmp_path / name) for name in ("default", "repository", "type", "tag")}
    mounted = MountedStore(stores["default"], {"a": stores["repository"], "a/keys": stores["type"], "a/keys/root": stores["tag"]})
    places = {
        "a/keys/root": "tag",
        "a/keys/roots": "type",
        "a/keys/other": "type",
        "a/keyset/x": "repository",
        "a/b/c": "repository",
        "ab/keys/root": "default",
        "b/a/keys": "default",
    }
    for name in places:
        mounted.put(ResourcePath.parse(name), Secret(name.encode()))
    assert {name: [place for place, store in stores.items() if name in names(store)] for name in places} == {
        name: [place] for name, place in places.items()
    }
    assert names(mounted) == sorted(places)
    assert names(mounted, "a/keys/root") == ["a/keys/root", "a/keys/roots"]
    assert names(mounted, "a/k") == ["a/keys/other", "a/keys/root", "a/keys/roots", "a/keyset/x"]
    assert [str(info.path) for info in mounted.list(limit=3).items] == sorted(places)[:3]


def test_what_a_mount_covers_does_not_show(tmp_path: Path) -> None:
    """Values that were there before the mount, and a back-end's values outside of its mount, are neither listed nor read."""
    below, above = files(tmp_path / "below"), files(tmp_path / "above")
    covered, outside, kept = (ResourcePath.parse(name) for name in ("a/b/covered", "x/y/outside", "x/y/kept"))
    below.put(covered, Secret(b"1"))
    below.put(kept, Secret(b"1"))
    above.put(outside, Secret(b"1"))
    mounted = MountedStore(below, {"a": above})
    assert names(mounted) == ["x/y/kept"]
    for path in (covered, outside):
        assert refused(lambda path=path: mounted.get(path)).code == "not-found"
        assert refused(lambda path=path: mounted.history(path)).code == "not-found"


def test_a_listing_asks_only_who_may_have_something(tmp_path: Path) -> None:
    """A back-end that is down takes none but its own paths with it."""

    class Down:
        def list(self, *_: object, **__: object) -> object:
            raise AssertionError("asked")

    mounted = MountedStore(files(tmp_path), {"team/keys": Down()})  # type: ignore[dict-item]
    mounted.put(ResourcePath.parse("team/certs/a"), Secret(b"1"))
    assert names(mounted, "team/certs") == ["team/certs/a"]
    with pytest.raises(AssertionError):
        mounted.list("team/")


@pytest.mark.parametrize("point", ["", "/", "a/", "/a", "a//b", "..", "a/..", "a/b/c/d", "a b", "é", "a/\0"])
def test_points_that_are_refused(tmp_path: Path, point: str) -> None:
    assert refused(lambda: MountedStore(files(tmp_path), {point: files(tmp_path)})).code == "bad-config"
