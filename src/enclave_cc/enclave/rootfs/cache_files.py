"""The node cache as files: places, locks, leases, collecting (docs/formats/sealed.md, section Node cache).

No key is needed for anything here. Many agents and the host do this at once; the rules of that section make it safe.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import stat
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from enclave_cc.errors import EnvironmentFault, PeerError, foreign

BLOBS, INDEX, LEASES, TEMPORARY, LOCK = "blobs", "index", "leases", "tmp", "lock"
GRACE = 60.0  # seconds after use in which an agent may be about to pin a file
ABANDONED = 86400.0  # seconds after which a file in tmp/ is nobody's
# What the host may have put in a file's place must neither lead elsewhere nor block (a FIFO does).
OPEN_HOSTS = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
LOCK_PATIENCE = 10.0  # seconds; who holds the lock lists a directory, no more

_CONTAINER_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_BLOB_ID = re.compile(rb"[0-9a-f]{32}")


def make_directories(root: Path) -> None:
    """Raises `EnvironmentFault`."""
    try:
        for name in (BLOBS, INDEX, LEASES, TEMPORARY):
            (root / name).mkdir(mode=0o755, parents=True, exist_ok=True)
    except OSError as error:
        raise fault(error, root) from error


def lease_path(root: Path, container_id: str) -> Path:
    """Where a container's lease lies. The id is host-authored; raises `PeerError` unless it is a plain name."""
    if not _CONTAINER_ID.fullmatch(container_id):
        raise PeerError("malformed", f"the container id {foreign(container_id)!r} is not a name")
    return root / LEASES / container_id


@contextmanager
def hold_lock(path: Path, kind: int, *, patience: float = LOCK_PATIENCE) -> Iterator[None]:
    """flock(2) on `path`, shared or exclusive. Raises `EnvironmentFault("deadline")` after `patience` seconds."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | OPEN_HOSTS, 0o600)
    except OSError as error:
        raise fault(error, path) from error
    try:
        until = time.monotonic() + patience
        while True:
            try:
                fcntl.flock(fd, kind | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > until:
                    raise EnvironmentFault("deadline", f"another process kept {path} locked for {patience:.0f} s") from error
                time.sleep(0.01)
        yield
    finally:
        os.close(fd)


def pin(root: Path, container_id: str, blobs: Iterable[tuple[str, int]]) -> bool:
    """Adds blobs, (file name, size), to the container's lease; whether all are there, whole, and now stay."""
    names = dict(blobs)
    line = "".join(f"{name.removesuffix('.sealed')}\n" for name in names).encode()
    with hold_lock(root / LOCK, fcntl.LOCK_SH):
        try:
            fd = os.open(lease_path(root, container_id), os.O_WRONLY | os.O_APPEND | os.O_CREAT | OPEN_HOSTS, 0o644)
            try:
                os.write(fd, line)
            finally:
                os.close(fd)
        except OSError as error:
            raise fault(error, root) from error
        return are_present(root, names.items())


def are_present(root: Path, blobs: Iterable[tuple[str, int]]) -> bool:
    """Whether all blobs, (file name, size), are there and whole; marks them used."""
    try:
        for name, size in blobs:
            path = root / BLOBS / name
            if path.lstat().st_size != size:
                return False
            os.utime(path)
    except OSError:
        return False
    return True


def read_entry(path: Path, limit: int) -> bytes:
    """At most `limit` bytes of an index entry. Raises `OSError`."""
    with os.fdopen(os.open(path, os.O_RDONLY | OPEN_HOSTS), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "not a file")
        return file.read(limit)


def write_entry(root: Path, name: str, content: bytes) -> None:
    """Writes an index entry, whole or not at all. Raises `EnvironmentFault`, "disk-full" or "environment"."""
    temporary = root / TEMPORARY / os.urandom(16).hex()
    try:
        temporary.write_bytes(content)
        temporary.rename(root / INDEX / name)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise fault(error, root) from error


def collect(root: Path, max_bytes: int, *, grace: float = GRACE) -> int:
    """Removes the longest unused blobs and index entries that no lease names, down to `max_bytes`; the bytes freed."""
    freed = 0
    with hold_lock(root / LOCK, fcntl.LOCK_EX):
        leased = _read_leases(root)
        now = time.time()
        files = sorted(_list_files(root, (BLOBS, INDEX)))
        total = sum(size for _, size, _ in files)
        for used, size, path in files:
            if total <= max_bytes:
                break
            if path.name.removesuffix(".sealed").encode() in leased or now - used < grace:
                continue
            with suppress(OSError):
                path.unlink()
                total -= size
                freed += size
        for used, _, path in _list_files(root, (TEMPORARY,)):
            if now - used > ABANDONED:
                with suppress(OSError):
                    path.unlink()
    return freed


def _read_leases(root: Path) -> set[bytes]:
    leased: set[bytes] = set()
    for lease in (root / LEASES).iterdir():
        with suppress(FileNotFoundError):
            leased.update(line for line in lease.read_bytes().split(b"\n") if _BLOB_ID.fullmatch(line))
    return leased


def _list_files(root: Path, places: Iterable[str]) -> Iterator[tuple[float, int, Path]]:
    for place in places:
        for path in (root / place).iterdir():
            with suppress(FileNotFoundError):
                about = path.stat()
                yield about.st_mtime, about.st_size, path


def fault(error: OSError, path: Path) -> EnvironmentFault:
    """The coded error for a failure of the cache's file system."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return EnvironmentFault("disk-full", f"no space is left for sealed blobs in {path}")
    return EnvironmentFault("environment", f"the node cache at {path} cannot be used: {error.strerror}")
