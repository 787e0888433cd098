"""Measuring a bundle from outside: the manifest that the files on disk really give.

On hardware the loader measures what it loads. Here the supervisor reads every file before each start; digests of
unchanged files (by device, inode, size, mtime and ctime) come from a cache.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import time
from collections.abc import MutableMapping
from pathlib import Path

from enclave_cc.errors import EnvironmentFault
from enclave_cc.record import replace
from enclave_cc.wire.sgx.manifest import File, Manifest

# A file changed this shortly ago may change again without a new ctime (the clock ticks in jiffies): not cached.
_SETTLING_NS = 50_000_000
_READ_SIZE = 1 << 20
_TYPES = {
    stat.S_IFREG: "f",
    stat.S_IFDIR: "d",
    stat.S_IFLNK: "l",
    stat.S_IFIFO: "p",
    stat.S_IFSOCK: "s",
    stat.S_IFCHR: "c",
    stat.S_IFBLK: "b",
}


def actual_manifest(rootfs: Path | str, claimed: Manifest, cache: MutableMapping[str, str] | None = None) -> Manifest:
    """`claimed` with the files that are really below `rootfs`: a changed byte gives another measurement, not an error.

    `cache` maps a file's stat key to its SHA-256 and is brought up to date. Raises `EnvironmentFault("environment")`
    when the directory cannot be read.
    """
    return replace(claimed, files=list_files(rootfs, cache))


def list_files(rootfs: Path | str, cache: MutableMapping[str, str] | None = None) -> tuple[File, ...]:
    """Every file, directory, link and special file below `rootfs`, sorted by path. Raises as `actual_manifest`."""
    now = time.time_ns()
    fresh: dict[str, str] = {}
    files: list[File] = []
    pending = [("", os.fspath(rootfs))]
    try:
        while pending:
            prefix, directory = pending.pop()
            with os.scandir(directory) as entries:
                for entry in entries:
                    path = prefix + entry.name
                    info = entry.stat(follow_symlinks=False)
                    kind = _TYPES[stat.S_IFMT(info.st_mode)]
                    value = ""
                    if kind == "f":
                        key = f"{info.st_dev}:{info.st_ino}:{info.st_size}:{info.st_mtime_ns}:{info.st_ctime_ns}"
                        known = cache.get(key) if cache is not None else None
                        value = known if known is not None else _digest(entry.path)
                        if known is not None or now - info.st_ctime_ns > _SETTLING_NS:
                            fresh[key] = value
                    elif kind == "d":
                        pending.append((path + "/", entry.path))
                    elif kind == "l":
                        value = os.readlink(entry.path)  # noqa: PTH115 - as below
                    elif kind in "cb":
                        value = f"{os.major(info.st_rdev)}:{os.minor(info.st_rdev)}"
                    files.append(File(path, kind, stat.S_IMODE(info.st_mode), value))
    except OSError as error:
        raise EnvironmentFault("environment", f"cannot measure the bundle in {rootfs}: {error}") from error
    if cache is not None:
        cache.clear()
        cache.update(fresh)
    files.sort(key=lambda entry: entry.path)
    return tuple(files)


def load_cache(path: Path) -> dict[str, str]:
    """The cache saved at `path`, empty if there is none or it cannot be read: it only saves time."""
    try:
        document = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    if not isinstance(document, dict) or not all(isinstance(value, str) and len(value) == 64 for value in document.values()):
        return {}
    return document


def save_cache(path: Path, cache: MutableMapping[str, str]) -> None:
    """Saves the cache whole or not at all; a failure costs time at the next start, nothing else."""
    partial = path.with_name(f".{path.name}.{os.urandom(4).hex()}.partial")
    try:
        partial.write_text(json.dumps(dict(cache)))
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)


def _digest(path: str) -> str:
    with open(path, "rb", buffering=0) as file:  # noqa: PTH123 - 1,500 Path objects cost more than the hashing
        digest = hashlib.sha256()
        while part := file.read(_READ_SIZE):
            digest.update(part)
        return digest.hexdigest()
