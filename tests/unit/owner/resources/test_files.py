"""Files: the suite, plain and sealed; what lies on disk, kill -9, and files that somebody else put there."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
from resource_store import A, B, Reopen, ResourceStoreSuite, refused

from enclave_cc.crypto.secret import Secret
from enclave_cc.errors import PeerError
from enclave_cc.owner.resources.files import FileObjects
from enclave_cc.owner.resources.sealing import Keyring
from enclave_cc.owner.resources.store import ResourceStore
from enclave_cc.owner.resources.versioned import VersionedStore
from enclave_cc.wire.rcar.uri import ResourcePath

KEY = Secret(bytes(range(32)))


def open_store(directory: Path, *keys: Secret) -> VersionedStore:
    return VersionedStore(FileObjects(directory), Keyring(keys or (KEY,)))


class TestFiles(ResourceStoreSuite):
    @pytest.fixture
    def store(self, tmp_path: Path) -> ResourceStore:
        return open_store(tmp_path / "r")

    @pytest.fixture
    def reopen(self, tmp_path: Path) -> Reopen:
        return lambda: open_store(tmp_path / "r")


def test_nothing_readable_on_disk(tmp_path: Path) -> None:
    canary = os.urandom(8).hex().encode() * 4
    store = open_store(tmp_path / "r")
    store.put(A, Secret(canary))
    store.delete(A)
    store.put(B, Secret(canary))
    seen = [path for path in (tmp_path / "r").rglob("*") if path.is_file()]
    assert len(seen) >= 3
    for path in seen:
        assert canary[:16] not in path.read_bytes()
    for path in (tmp_path / "r", *(tmp_path / "r").rglob("*")):
        assert path.stat().st_mode & 0o077 == 0
    assert not (tmp_path / "r/default/key/a/1").exists()  # a removed value is off the disk


def test_values_cannot_change_places(tmp_path: Path) -> None:
    store, place = open_store(tmp_path), tmp_path / "default/key"
    store.put(A, Secret(b"a1"))
    store.put(A, Secret(b"a2"))
    store.put(B, Secret(b"b1"))
    shutil.copy(place / "a/1", place / "a/2")
    shutil.copy(place / "a/1", place / "b/1")
    for path in (A, B):
        assert refused(lambda path=path: store.get(path)).code == "environment"
    assert store.get(A, 1).value == Secret(b"a1")
    assert refused(lambda: open_store(tmp_path, Secret(bytes(32))).get(A, 1)).code == "environment"


@pytest.mark.parametrize("name", ["head", "1"])
@pytest.mark.parametrize("content", [b"", b"{}", b"\xff" * 100, b"[" * 100_000, b'{"format":1}', b'{"format":2}', b"\x01" * 64])
def test_a_changed_file_is_a_coded_fault(tmp_path: Path, name: str, content: bytes) -> None:
    store = open_store(tmp_path)
    store.put(A, Secret(b"a1"))
    (tmp_path / "default/key/a" / name).write_bytes(content)
    assert refused(lambda: store.get(A)).code in ("store-failed", "environment")


def test_links_are_not_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_bytes(b"untouched")
    store, place = open_store(tmp_path / "r"), tmp_path / "r/default/key/a"
    store.put(A, Secret(b"a1"))
    for name in ("1", "head"):
        (place / name).unlink()
        (place / name).symlink_to(outside)
        assert refused(lambda: store.get(A)).code == "environment"
    shutil.rmtree(place)
    store.put(B, Secret(b"b1"))
    (place.parent / "b/.new").symlink_to(outside)
    assert refused(lambda: store.put(B, Secret(b"x"))).code == "environment"
    (tmp_path / "r/linked").symlink_to(tmp_path)
    assert [str(info.path) for info in store.list().items] == [str(B)]
    assert outside.read_bytes() == b"untouched"


@pytest.mark.parametrize(
    "name",
    [
        "../../etc/passwd",
        "a/../b",
        "a/b/..",
        "a/b/%2e%2e",
        "a/b/\0",
        "a//b",
        "/a/b/c",
        "a/b/c/d",
        "a/b/" + "c" * 256,
        "a/b/é",
        "a\\b/c/d",
    ],
)
def test_a_name_never_leads_elsewhere(tmp_path: Path, name: str) -> None:
    """`ResourcePath` refuses these; the back-end does not rely on its callers having asked it."""
    objects = FileObjects(tmp_path / "r")
    for act in (
        lambda: objects.write_head(name, b"x"),
        lambda: objects.write_value(name, 1, b"x"),
        lambda: objects.read_head(name),
    ):
        with pytest.raises(PeerError):
            act()
    assert [path.name for path in (tmp_path / "r").iterdir()] == []


def test_a_directory_that_others_write_to_is_refused(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    assert refused(lambda: FileObjects(tmp_path / "open")).code == "bad-config"
    (tmp_path / "file").write_text("")
    assert refused(lambda: FileObjects(tmp_path / "file")).code in ("bad-config", "environment")


PROGRAM = textwrap.dedent("""
    import sys
    from pathlib import Path
    from enclave_cc.crypto.secret import Secret
    from enclave_cc.owner.resources.files import FileObjects
    from enclave_cc.owner.resources.sealing import Keyring
    from enclave_cc.owner.resources.versioned import VersionedStore
    from enclave_cc.wire.rcar.uri import ResourcePath
    store = VersionedStore(FileObjects(Path(sys.argv[1])), Keyring([Secret(bytes(range(32)))]))
    path = ResourcePath.parse("default/key/a")
    while True:
        print(store.put(path, Secret(sys.argv[2].encode() * 2000)), flush=True)
""")


def test_a_killed_writer_loses_nothing_it_acknowledged(tmp_path: Path) -> None:
    """SIGKILL at any moment: what `put` returned for is there and opens, and nothing half-written is."""
    last = 0
    for attempt in range(8):
        child = subprocess.Popen([sys.executable, "-c", PROGRAM, str(tmp_path), str(attempt)], stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        for _ in range(2 + attempt * 3):
            last = int(child.stdout.readline())
        child.send_signal(signal.SIGKILL)
        last = max([last, *(int(line) for line in child.stdout.read().splitlines() if line)])
        child.wait()
        child.stdout.close()
        store = open_store(tmp_path)
        found = store.get(A)
        assert last <= found.version <= last + 1
        assert found.value == Secret(str(attempt).encode() * 2000)
        for each in store.history(A):
            store.get(A, each.version)


def test_a_writer_killed_at_each_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same, at every single call to the disk: put and delete are whole or have not been."""

    class Killed(BaseException):
        pass

    def count_down(steps: int) -> Callable[..., None]:
        left = [steps]
        original = os.fsync

        def fsync(descriptor: int) -> None:
            if left[0] == 0:
                raise Killed
            left[0] -= 1
            original(descriptor)

        return fsync

    for act in ("put", "delete"):
        for steps in range(12):
            directory = tmp_path / f"{act}{steps}"
            store = open_store(directory)
            store.put(A, Secret(b"one"), tags={"a": "1"})
            with monkeypatch.context() as patch:
                patch.setattr(os, "fsync", count_down(steps))
                try:
                    if act == "put":
                        store.put(A, Secret(b"two"), tags={"a": "2"})
                    else:
                        store.delete(A)
                    finished = True
                except Killed:
                    finished = False
            again = open_store(directory)
            state = [(info.version, dict(info.tags)) for info in again.list().items]
            before, after = [(1, {"a": "1"})], [(2, {"a": "2"})] if act == "put" else []
            assert state == after if finished else state in (before, after)
            if state:
                assert again.get(A).value == Secret(b"one" if state == before else b"two")
            assert again.put(A, Secret(b"next")) == (2 if state == before or act == "delete" else 3)
            assert again.get(A).value == Secret(b"next")
            assert not (directory / "default/key/a/1").exists() or again.get(A, 1).value == Secret(b"one")


def test_a_resource_of_each_name_length(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    every = [ResourcePath("r", "t", "A" * size) for size in (1, 99, 100, 101, 199, 200, 201, 255)]
    every += [ResourcePath("r", "t", "a" * 199 + "B" + "c" * rest) for rest in (0, 1, 55)]
    for number, path in enumerate(every):
        store.put(path, Secret(bytes([number])))
    assert {str(info.path) for info in store.list().items} == {str(path) for path in every}
    assert [store.get(path).value for path in every] == [Secret(bytes([number])) for number in range(len(every))]
