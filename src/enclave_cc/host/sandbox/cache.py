"""The node's sealed cache as the host sees it: files and leases, no keys (docs/formats/sealed.md, Node cache)."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from enclave_cc.errors import UsageError, foreign
from enclave_cc.host.sandbox.directories import lock_exclusively
from enclave_cc.record import record

_ID = re.compile(r"[0-9a-f]{32}")
_IN_USE_SECONDS = 60  # an agent may be about to pin what it has just used
_STALE_SECONDS = 86400


@record
class Blob:
    """A sealed blob: `size` in bytes on disk, `used` as Unix time, the containers that pin it."""

    id: str
    size: int
    used: float
    pinned_by: tuple[str, ...]


def list_blobs(cache: Path) -> list[Blob]:
    """All blobs, least recently used first."""
    pins = read_leases(cache)
    blobs = []
    for entry, info in _scan(cache / "blobs"):
        identifier = entry.name.removesuffix(".sealed")
        if _ID.fullmatch(identifier):
            holders = tuple(sorted(container for container, ids in pins.items() if identifier in ids))
            blobs.append(Blob(identifier, info.st_size, info.st_mtime, holders))
    return sorted(blobs, key=lambda blob: blob.used)


def read_leases(cache: Path) -> dict[str, set[str]]:
    """Container -> blob ids that it pins; a line that is no id is skipped, as the format says."""
    leases: dict[str, set[str]] = {}
    for entry, _ in _scan(cache / "leases"):
        with suppress(OSError):
            lines = Path(entry.path).read_text("ascii", "replace").split("\n")
            leases[entry.name] = {line for line in lines[:-1] if _ID.fullmatch(line)}
    return leases


def collect(cache: Path, max_bytes: int, *, deadline: float) -> list[str]:
    """Removes the least recently used files until at most `max_bytes` remain; the names of what was removed.

    Never what a lease names or what was used within a minute. Raises `EnvironmentFault("deadline")` when agents keep
    the cache busy.
    """
    removed: list[str] = []
    with _locked(cache, deadline):
        pinned = set().union(*read_leases(cache).values())
        now = time.time()
        files = [*_scan(cache / "blobs"), *_scan(cache / "index")]
        total = sum(info.st_size for _, info in files)
        for entry, info in sorted(files, key=lambda item: item[1].st_mtime):
            if total <= max_bytes:
                break
            if entry.name.removesuffix(".sealed") in pinned or now - info.st_mtime < _IN_USE_SECONDS:
                continue
            with suppress(OSError):
                os.unlink(entry.path)  # noqa: PTH108
                total -= info.st_size
                removed.append(entry.name)
        for entry, info in _scan(cache / "tmp"):
            if now - info.st_mtime > _STALE_SECONDS:
                with suppress(OSError):
                    os.unlink(entry.path)  # noqa: PTH108
    return removed


def remove_blobs(cache: Path, words: list[str], *, deadline: float) -> list[str]:
    """Removes blobs by id or beginning of an id. Raises `UsageError` for one that is pinned or not there."""
    with _locked(cache, deadline):
        blobs = list_blobs(cache)
        chosen: dict[str, Blob] = {}
        for word in words:
            found = [blob for blob in blobs if len(word) >= 4 and blob.id.startswith(word)]
            if len(found) != 1:
                what = (
                    f"{len(found) or 'no'} blobs begin with {foreign(word)}" if len(word) >= 4 else f"{foreign(word)} is too short"
                )
                raise UsageError("not-found", what, "Name a blob by 4 or more digits of its id in `enclave-cc image ls`.")
            if found[0].pinned_by:
                raise UsageError("wrong-state", f"blob {found[0].id} is used by {found[0].pinned_by[0]}", "Remove that pod first.")
            chosen[found[0].id] = found[0]
        for identifier in chosen:
            (cache / "blobs" / f"{identifier}.sealed").unlink(missing_ok=True)
    return sorted(chosen)


def remove_leases(cache: Path, containers: Iterable[str]) -> None:
    """Removes the leases of containers that are gone."""
    for name in containers:
        (cache / "leases" / name).unlink(missing_ok=True)


@contextmanager
def _locked(cache: Path, deadline: float) -> Iterator[None]:
    """The lock that orders pinning and collecting, exclusively."""
    cache.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor = os.open(cache / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        lock_exclusively(descriptor, "the cache's blobs", deadline=deadline)
        yield
    finally:
        os.close(descriptor)


def _scan(directory: Path) -> list[tuple[os.DirEntry[str], os.stat_result]]:
    found = []
    try:
        for entry in os.scandir(directory):
            with suppress(FileNotFoundError):
                if entry.is_file(follow_symlinks=False):
                    found.append((entry, entry.stat(follow_symlinks=False)))
    except FileNotFoundError:
        pass
    return found
