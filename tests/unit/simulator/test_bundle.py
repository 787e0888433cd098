"""Measuring a bundle from outside."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

import pytest

from enclave_cc.errors import EnvironmentFault
from enclave_cc.simulator import bundle
from enclave_cc.wire.sgx.manifest import File, Manifest, measure

CLAIMED = Manifest(role="app", entrypoint=("/bin/x",))


@pytest.fixture
def rootfs(tmp_path: Path) -> Path:
    root = tmp_path / "rootfs"
    (root / "bin").mkdir(parents=True)
    (root / "bin/x").write_bytes(b"program")
    (root / "bin/x").chmod(0o755)
    (root / "bin.d").mkdir()
    (root / "empty").touch(0o600)
    (root / "lib").symlink_to("bin/../lib64")
    os.mkfifo(root / "fifo", 0o600)
    os.utime(root / "bin/x", (1, 1))
    return root


def settle(root: Path) -> None:
    """Makes every file look long unchanged, as an installed bundle's are: ctime cannot be set, so it waits."""
    import time

    while time.time_ns() - max(p.lstat().st_ctime_ns for p in root.rglob("*")) <= 60_000_000:
        time.sleep(0.01)


def test_every_entry_is_listed_in_order(rootfs: Path) -> None:
    assert bundle.list_files(rootfs) == (
        File("bin", "d", 0o755),
        File("bin.d", "d", 0o755),
        File("bin/x", "f", 0o755, hashlib.sha256(b"program").hexdigest()),
        File("empty", "f", 0o600, hashlib.sha256(b"").hexdigest()),
        File("fifo", "p", 0o600),
        File("lib", "l", 0o777, "bin/../lib64"),
    )


@pytest.mark.root
def test_a_device_is_listed_by_number(rootfs: Path) -> None:
    os.mknod(rootfs / "null", 0o20666, os.makedev(1, 3))
    assert File("null", "c", 0o644, "1:3") in bundle.list_files(rootfs)


def test_the_same_bundle_elsewhere_has_the_same_measurement(rootfs: Path, tmp_path: Path) -> None:
    copy = tmp_path / "somewhere/else"
    shutil.copytree(rootfs, copy, symlinks=True, ignore=lambda *_: ["fifo"])
    (rootfs / "fifo").unlink()
    assert bundle.actual_manifest(copy, CLAIMED).encode() == bundle.actual_manifest(rootfs, CLAIMED).encode()


@pytest.mark.parametrize(
    "change",
    [
        lambda root: (root / "bin/x").write_bytes(b"Program"),
        lambda root: (root / "bin/x").chmod(0o4755),
        lambda root: (root / "extra").touch(),
        lambda root: (root / "empty").unlink(),
        lambda root: (root / "bin/x").rename(root / "bin/y"),
        lambda root: ((root / "lib").unlink(), (root / "lib").symlink_to("bin")),
    ],
    ids=["byte", "mode", "more", "less", "name", "link"],
)
def test_a_changed_bundle_has_another_measurement(rootfs: Path, change: object) -> None:
    cache: dict[str, str] = {}
    settle(rootfs)
    before = measure(bundle.actual_manifest(rootfs, CLAIMED, cache).encode())
    assert len(cache) == 2
    change(rootfs)  # type: ignore[operator]
    assert measure(bundle.actual_manifest(rootfs, CLAIMED, cache).encode()) != before


def test_a_change_that_keeps_size_and_mtime_is_seen(rootfs: Path) -> None:
    settle(rootfs)
    cache: dict[str, str] = {}
    before = bundle.list_files(rootfs, cache)
    info = (rootfs / "bin/x").stat()
    (rootfs / "bin/x").write_bytes(b"PROGRAM")
    os.utime(rootfs / "bin/x", ns=(info.st_atime_ns, info.st_mtime_ns))
    assert bundle.list_files(rootfs, cache) != before


def test_unchanged_files_come_from_the_cache(rootfs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settle(rootfs)
    cache: dict[str, str] = {}
    files = bundle.list_files(rootfs, cache)
    bundle.save_cache(tmp_path / "cache.json", cache)
    loaded = bundle.load_cache(tmp_path / "cache.json")
    assert loaded == cache
    monkeypatch.setattr(bundle, "_digest", lambda path: pytest.fail(f"{path} was read again"))
    assert bundle.list_files(rootfs, loaded) == files


def test_a_file_changed_just_now_is_not_cached(rootfs: Path) -> None:
    (rootfs / "empty").write_bytes(b"1")
    cache: dict[str, str] = {}
    bundle.list_files(rootfs, cache)
    info = (rootfs / "empty").stat()
    assert not any(key.startswith(f"{info.st_dev}:{info.st_ino}:") for key in cache)


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b'{"a": 1}', b'{"a": "short"}'])
def test_a_broken_cache_is_an_empty_one(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "cache.json").write_bytes(content)
    assert bundle.load_cache(tmp_path / "cache.json") == {}
    assert bundle.load_cache(tmp_path / "none.json") == {}


def test_a_cache_that_cannot_be_saved_is_no_error(tmp_path: Path) -> None:
    bundle.save_cache(tmp_path / "no/such/directory.json", {"a": "b"})


def test_a_missing_bundle(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFault, match="cannot measure"):
        bundle.actual_manifest(tmp_path / "none", CLAIMED)
