"""The node cache: hits, misses, hostile directories, many users at once."""

from __future__ import annotations

import fcntl
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from enclave_cc.crypto.secret import Secret
from enclave_cc.enclave.rootfs import cache_files, entries
from enclave_cc.enclave.rootfs.cache import ENTRIES_FORMAT, NodeCache
from enclave_cc.enclave.rootfs.entries import Entry, encode_entries
from enclave_cc.enclave.rootfs.layer import Layer
from enclave_cc.enclave.rootfs.sealed_reader import SealedReader
from enclave_cc.enclave.rootfs.sealed_writer import SealedWriter
from enclave_cc.errors import EnvironmentFault, PeerError
from enclave_cc.wire.sealed.block import Role
from enclave_cc.wire.sealed.descriptor import BlobDescriptor
from enclave_cc.wire.sealed.rootfs import RootfsDescriptor

KEY = Secret(bytes(range(16)))


def write_blob(directory: Path, role: Role = Role.LAYER, size: int = 1000) -> BlobDescriptor:
    with SealedWriter(directory, role) as writer:
        writer.write(os.urandom(size))
        return writer.finish()


def make_layer(directory: Path, name: str = "a", size: int = 1000) -> Layer:
    encoded = encode_entries([Entry(path=b"file", kind=entries.FILE, size=5, extents=((512, 5, 0),))])
    return Layer(f"sha256:{name}", f"sha256:diff-{name}", write_blob(directory, size=size), encoded)


def lookup(cache: NodeCache, layer: Layer) -> Layer | None:
    return cache.lookup_layer(layer.digest, layer.diff_id)


def blob_of(cache: NodeCache, layer: Layer) -> Path:
    return cache.directory / "blobs" / layer.descriptor.file_name


def age(path: Path, seconds: float) -> None:
    os.utime(path, (time.time() - seconds, time.time() - seconds))


@pytest.fixture
def log() -> list[str]:
    return []


@pytest.fixture
def cache(tmp_path: Path, log: list[str]) -> NodeCache:
    return NodeCache(tmp_path, KEY, log=log.append)


def test_a_layer_is_found_by_another_agent(cache: NodeCache) -> None:
    layer = make_layer(cache.directory)
    assert lookup(cache, layer) is None
    cache.store_layer(layer)
    other = NodeCache(cache.directory, KEY)
    assert lookup(other, layer) == layer
    assert lookup(other, layer).entries[0].path == b"file"  # type: ignore[union-attr]
    assert other.lookup_layer(layer.digest, "sha256:other") is None
    assert other.lookup_layer("sha256:other", layer.diff_id) is None


def test_a_rootfs_is_found_by_its_layers_in_order(cache: NodeCache) -> None:
    layers = [make_layer(cache.directory, name) for name in "ab"]
    rootfs = RootfsDescriptor(write_blob(cache.directory, Role.METADATA), tuple(layer.descriptor for layer in layers))
    names = [(layer.digest, layer.diff_id) for layer in layers]
    assert cache.lookup_rootfs(names) is None
    cache.store_rootfs(names, rootfs)
    assert cache.lookup_rootfs(names) == rootfs
    assert cache.lookup_rootfs(names[::-1]) is None
    assert cache.lookup_rootfs(names[:1]) is None
    blob_of(cache, layers[1]).unlink()
    assert cache.lookup_rootfs(names) is None


def test_nothing_on_disk_tells_keys_or_digests(cache: NodeCache) -> None:
    layer = make_layer(cache.directory, "abcdef" * 10)
    cache.store_layer(layer)
    for path in cache.directory.rglob("*"):
        assert "abcdef" not in path.name
        if path.is_file():
            content = path.read_bytes()
            for secret in (b"abcdef", layer.descriptor.key.reveal(), layer.descriptor.key.reveal().hex().encode(), b"file"):
                assert secret not in content


def test_an_agent_with_another_seal_key_finds_nothing(cache: NodeCache) -> None:
    layer = make_layer(cache.directory)
    cache.store_layer(layer)
    assert lookup(NodeCache(cache.directory, Secret(bytes(16))), layer) is None
    assert lookup(cache, layer) == layer


def overwrite(path: Path) -> None:
    path.write_bytes(b"\0" * path.stat().st_size)


CHANGES: dict[str, Callable[[Path], object]] = {
    "emptied": lambda path: path.write_bytes(b""),
    "cut short": lambda path: os.truncate(path, path.stat().st_size - 1),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "zeros": overwrite,
    "another version": lambda path: path.write_bytes(b"\x02" + path.read_bytes()[1:]),
    "a bit": lambda path: path.write_bytes(path.read_bytes()[:20] + b"\x55\x55" + path.read_bytes()[22:]),
    "gone": lambda path: path.unlink(),
    "a directory": lambda path: (path.unlink(), path.mkdir()),
    "a loop": lambda path: (path.unlink(), path.symlink_to(path)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_index_entry_is_a_miss(cache: NodeCache, log: list[str], change: str) -> None:
    layer = make_layer(cache.directory)
    cache.store_layer(layer)
    (entry,) = (cache.directory / "index").iterdir()
    CHANGES[change](entry)
    assert lookup(cache, layer) is None
    assert bool(log) == (change != "gone")


def test_swapped_index_entries_are_misses(cache: NodeCache) -> None:
    one, two = make_layer(cache.directory, "1"), make_layer(cache.directory, "2")
    cache.store_layer(one)
    (first,) = (cache.directory / "index").iterdir()
    cache.store_layer(two)
    (second,) = (path for path in (cache.directory / "index").iterdir() if path != first)
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)
    assert lookup(cache, one) is None and lookup(cache, two) is None


@pytest.mark.parametrize("change", [lambda p: p.unlink(), lambda p: os.truncate(p, 5), lambda p: os.truncate(p, 1 << 20)])
def test_a_blob_that_is_not_whole_is_a_miss(cache: NodeCache, log: list[str], change: Callable[[Path], object]) -> None:
    layer = make_layer(cache.directory)
    cache.store_layer(layer)
    change(blob_of(cache, layer))
    assert lookup(cache, layer) is None
    assert layer.descriptor.id.hex() in log[0]
    assert list((cache.directory / "index").iterdir()) == []


def test_the_oldest_unused_is_collected_first(cache: NodeCache) -> None:
    layers = [make_layer(cache.directory, name, 100_000) for name in "abcd"]
    for number, layer in enumerate(layers):
        cache.store_layer(layer)
        for path in (*(cache.directory / "index").iterdir(), blob_of(cache, layer)):
            if time.time() - path.stat().st_mtime < 100:
                age(path, 1000 - number * 100)
    assert lookup(cache, layers[0]) == layers[0]  # used just now
    freed = cache.collect(250_000)
    assert freed >= 200_000
    assert [lookup(cache, layer) is not None for layer in layers] == [True, False, False, True]
    assert cache.collect(250_000) == 0


def test_leased_and_fresh_blobs_stay(cache: NodeCache) -> None:
    leased, fresh, idle = (make_layer(cache.directory, name) for name in "123")
    cache.for_container("c1").store_layer(leased)
    cache.store_layer(fresh)
    cache.store_layer(idle)
    for layer in (leased, idle):
        age(blob_of(cache, layer), 3600)
    (cache.directory / "leases/odd").write_bytes(b"\xff\xfe\n../../etc/passwd\n" + b"0" * 5000)
    cache.collect(0)
    assert [blob_of(cache, layer).exists() for layer in (leased, fresh, idle)] == [True, True, False]
    cache.release("c1")
    cache.release("c1")
    cache.collect(0)
    assert not blob_of(cache, leased).exists()


def test_lookups_pin_too(cache: NodeCache) -> None:
    layer = make_layer(cache.directory)
    rootfs = RootfsDescriptor(write_blob(cache.directory, Role.METADATA), (layer.descriptor,))
    names = [(layer.digest, layer.diff_id)]
    cache.store_layer(layer)
    cache.store_rootfs(names, rootfs)
    assert lookup(cache.for_container("c1"), layer) and cache.for_container("c2").lookup_rootfs(names)
    ids = [blob.id.hex() for blob in rootfs.blobs]
    assert (cache.directory / "leases/c1").read_text() == f"{ids[1]}\n"
    assert (cache.directory / "leases/c2").read_text() == f"{ids[0]}\n{ids[1]}\n"


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../x", "a\0", "a" * 129, ".hidden", "a\n"])
def test_a_container_id_that_is_no_name(cache: NodeCache, name: str) -> None:
    with pytest.raises(PeerError) as caught:
        cache.for_container(name)
    assert caught.value.code == "malformed"


def test_abandoned_files_are_removed(cache: NodeCache) -> None:
    old, new = cache.directory / "tmp/old", cache.directory / "tmp/new"
    for path in (old, new):
        path.write_bytes(b"x")
    age(old, 2 * 86400)
    cache.collect(1 << 30)
    assert not old.exists() and new.exists()


def test_agents_who_want_the_same_layer_fetch_it_once(cache: NodeCache) -> None:
    fetched: list[Layer] = []
    found: list[Layer] = []

    def ingest() -> Layer:
        time.sleep(0.1)
        fetched.append(make_layer(cache.directory))
        return fetched[-1]

    def agent() -> None:
        found.append(NodeCache(cache.directory, KEY).get_layer("sha256:a", "sha256:diff-a", ingest, patience=20))

    threads = [threading.Thread(target=agent) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(fetched) == 1 and found == fetched * 6


def test_who_has_waited_long_enough_fetches_himself(cache: NodeCache) -> None:
    name = cache._name(f"layer\0{ENTRIES_FORMAT}\0sha256:a\0sha256:diff-a".encode())
    with cache_files.hold_lock(cache.directory / "tmp" / f"{name}.lock", fcntl.LOCK_EX):
        layer = cache.get_layer("sha256:a", "sha256:diff-a", lambda: make_layer(cache.directory), patience=0.05)
    assert lookup(cache, layer) == layer


def test_an_ingestion_that_fails_is_the_next_ones_turn(cache: NodeCache) -> None:
    def fail() -> Layer:
        raise PeerError("digest-mismatch", "no")

    with pytest.raises(PeerError):
        cache.get_layer("sha256:a", "sha256:diff-a", fail, patience=5)
    layer = cache.get_layer("sha256:a", "sha256:diff-a", lambda: make_layer(cache.directory), patience=5)
    assert lookup(cache, layer) == layer


def test_many_agents_and_collectors_at_once(tmp_path: Path) -> None:
    """Processes store, look up and collect at random; a layer that was pinned is never missing."""

    def run(number: int) -> None:
        cache = NodeCache(tmp_path, KEY).for_container(f"c{number}")
        for turn in range(25):
            name = f"{(number + turn) % 5}"
            layer = cache.get_layer(
                f"sha256:{name}", f"sha256:diff-{name}", lambda name=name: make_layer(tmp_path, name), patience=20
            )
            cache_files.collect(tmp_path, 2000, grace=0)
            assert blob_of(cache, layer).stat().st_size == layer.descriptor.sealed_size
            cache.release(f"c{number}")

    children = []
    for number in range(4):
        if (pid := os.fork()) == 0:
            status = 1
            try:
                run(number)
                status = 0
            except EnvironmentFault as error:
                # collected between write and pin: possible without the grace, and said so
                status = 0 if "just written" in error.what else 1
            finally:
                os._exit(status)
        children.append(pid)
    assert [os.waitpid(pid, 0)[1] for pid in children] == [0] * 4


def test_a_lock_that_is_never_released_has_a_deadline(cache: NodeCache) -> None:
    with cache_files.hold_lock(cache.directory / "lock", fcntl.LOCK_EX):
        with pytest.raises(EnvironmentFault) as caught:
            with cache_files.hold_lock(cache.directory / "lock", fcntl.LOCK_SH, patience=0.05):
                pass
    assert caught.value.code == "deadline"


def test_a_blob_that_vanished_before_it_was_stored(cache: NodeCache) -> None:
    layer = make_layer(cache.directory)
    blob_of(cache, layer).unlink()
    with pytest.raises(EnvironmentFault):
        cache.store_layer(layer)


def test_a_full_disk_under_the_index(cache: NodeCache, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    layer = make_layer(cache.directory)
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(EnvironmentFault) as caught:
        cache.store_layer(layer)
    assert caught.value.code == "disk-full"
    assert list((cache.directory / "tmp").iterdir()) == []


def test_the_entries_format_is_that_of_the_entries() -> None:
    assert encode_entries([])[:8] == b"ECCENT%d\0" % ENTRIES_FORMAT


def _link(path: Path) -> None:
    path.symlink_to("/dev/zero")


def _device(path: Path) -> None:
    os.mknod(path, 0o20666, os.makedev(1, 5))  # /dev/zero


@pytest.mark.parametrize("put", [os.mkfifo, os.mkdir, _link, _device])
def test_what_is_no_file_is_a_miss(cache: NodeCache, log: list[str], put: Callable[[Path], object]) -> None:
    """The host may put anything in a file's place; reading a FIFO would wait for ever."""
    layer = make_layer(cache.directory)
    cache.store_layer(layer)
    (entry,) = (cache.directory / cache_files.INDEX).iterdir()
    entry.unlink()
    put(entry)
    assert lookup(cache, layer) is None
    assert log
    blob = cache.directory / cache_files.BLOBS / layer.descriptor.file_name
    blob.unlink()
    put(blob)
    with pytest.raises((PeerError, EnvironmentFault)), SealedReader(cache.directory, layer.descriptor) as reader:
        reader.read(0, 10)


def test_a_lease_is_not_written_through_a_link(cache: NodeCache, tmp_path: Path) -> None:
    (cache.directory / cache_files.LEASES / "c").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(EnvironmentFault):
        cache.for_container("c").store_layer(make_layer(cache.directory))
    assert not (tmp_path / "elsewhere").exists()
