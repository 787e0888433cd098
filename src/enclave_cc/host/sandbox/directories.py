"""Where things lie on the node: live pods, records of ended ones, locks and names.

RUN/pods/ID/          a live pod: pod.json, journal, run/ (agent's sockets), c/CONTAINER/ (bundle, shared/, files/)
RUN/locks/ID          held (flock) by the pod's supervisor for its whole life; not held: the supervisor is dead
RUN/records/ID/       what is kept of an ended pod: pod.json and logs
RUN/names/NAME        symbolic link to ID
RUN/runc/             runc's own state
STATE/cache/          sealed blobs      STATE/simulator/  the simulated platform      STATE/measurements.json
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from enclave_cc.errors import EnvironmentFault, UsageError, foreign
from enclave_cc.host.sandbox.configuration import Configuration
from enclave_cc.record import record

ID_SIZE = 16


def shorten(identifier: str) -> str:
    """A directory name for a foreign id: Unix sockets lie below it, and their paths have at most 107 bytes."""
    if len(identifier) <= ID_SIZE and identifier.isalnum():
        return identifier
    import hashlib  # foreign ids only

    return hashlib.sha256(identifier.encode()).hexdigest()[:ID_SIZE]


@record
class Directories:
    """Paths only; nothing is made but by `prepare`."""

    run: Path
    state: Path

    @classmethod
    def of(cls, configuration: Configuration) -> Directories:
        return cls(configuration.run, configuration.state)

    @property
    def pods(self) -> Path:
        return self.run / "pods"

    @property
    def records(self) -> Path:
        return self.run / "records"

    @property
    def locks(self) -> Path:
        return self.run / "locks"

    @property
    def names(self) -> Path:
        return self.run / "names"

    @property
    def runc(self) -> Path:
        return self.run / "runc"

    @property
    def cache(self) -> Path:
        return self.state / "cache"

    @property
    def leases(self) -> Path:
        return self.cache / "leases"

    @property
    def simulator(self) -> Path:
        return self.state / "simulator"

    @property
    def measurements(self) -> Path:
        return self.state / "measurements.json"

    def prepare(self) -> None:
        """Makes what a pod needs; others on the machine see nothing of it."""
        for directory in (self.pods, self.records, self.locks, self.names, self.runc):
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        for directory in (self.cache / "blobs", self.leases):
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)


class PodLock:
    """The mark of a living supervisor. A fork inherits it: the pod lives as long as either process."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._descriptor = descriptor

    @classmethod
    def try_take(cls, path: Path) -> PodLock | None:
        """None when another process holds it."""
        while True:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(descriptor)
                return None
            # Between open and flock another may have removed the file: then we hold a lock that nobody sees.
            try:
                if os.stat(path).st_ino == os.fstat(descriptor).st_ino:  # noqa: PTH116
                    return cls(path, descriptor)
            except FileNotFoundError:
                pass
            os.close(descriptor)

    def release(self, *, remove: bool) -> None:
        if remove:
            self.path.unlink(missing_ok=True)
        os.close(self._descriptor)


def lock_exclusively(descriptor: int, what: str, *, deadline: float) -> None:
    """Waits for flock's exclusive lock. Raises `EnvironmentFault("deadline")`."""
    until = time.monotonic() + deadline
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > until:
                raise EnvironmentFault("deadline", f"{what} were busy for {deadline:g} s") from None
            time.sleep(0.02)
        else:
            return


def claim_id(directories: Directories) -> tuple[str, PodLock]:
    """A new pod id, its lock held before its directory exists."""
    while True:
        identifier = os.urandom(ID_SIZE // 2).hex()
        lock = PodLock.try_take(directories.locks / identifier)
        if lock is not None and not (directories.pods / identifier).exists():
            return identifier, lock


def claim(directories: Directories, identifier: str) -> PodLock:
    """The lock of a pod whose id the caller chose. Raises `UsageError("already-exists")` while it has a supervisor."""
    lock = PodLock.try_take(directories.locks / identifier)
    if lock is None:
        raise UsageError("already-exists", f"pod {identifier} has a supervisor")
    return lock


def claim_name(directories: Directories, name: str, identifier: str) -> Path:
    """Raises `UsageError("already-exists")` when a live or recorded pod has it."""
    if not name or len(name) > 63 or not all(c.isascii() and (c.isalnum() or c in "_.-") for c in name) or not name[0].isalnum():
        raise UsageError("usage", f"{foreign(name)!r} is no pod name: 1 to 63 letters, digits, '_', '.', '-', no sign first")
    link = directories.names / name
    descriptor = os.open(directories.names, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        lock_exclusively(
            descriptor, "the pods' names", deadline=10.0
        )  # else two that find a dead pod's name would take it from each other
        holder = read_name(directories, name)
        if holder is not None and is_known(directories, holder):
            raise UsageError("already-exists", f"there is a pod named {name}")
        link.unlink(missing_ok=True)
        os.symlink(identifier, link)  # noqa: PTH211 - the target is an id, not a path
    finally:
        os.close(descriptor)
    return link


def read_name(directories: Directories, name: str) -> str | None:
    try:
        return os.readlink(directories.names / name)  # noqa: PTH115
    except OSError:
        return None


def is_known(directories: Directories, identifier: str) -> bool:
    return any((place / identifier).exists() for place in (directories.pods, directories.records, directories.locks))


def list_ids(place: Path) -> list[str]:
    """Ids below `pods`, `records` or `locks`."""
    try:
        return sorted(entry.name for entry in os.scandir(place) if not entry.name.startswith("."))
    except FileNotFoundError:
        return []


def find(directories: Directories, word: str) -> Path:
    """The directory of the pod, live or recorded, with this id, beginning of an id, or name.

    Raises `UsageError("not-found")`, also when a beginning fits several.
    """
    named = read_name(directories, word) if word and "/" not in word else None
    wanted = named or word
    found = {
        identifier: place / identifier
        for place in (directories.records, directories.pods)
        for identifier in list_ids(place)
        if identifier == wanted or (named is None and len(wanted) >= 3 and identifier.startswith(wanted))
    }
    if wanted in found:
        return found[wanted]
    if len(found) == 1:
        return next(iter(found.values()))
    what = f"{len(found)} pods begin with {foreign(word)}" if found else f"there is no pod {foreign(word)}"
    raise UsageError("not-found", what)


def read_json(path: Path) -> dict[str, object]:
    """An object from a file of ours; empty when it is absent or broken."""
    with suppress(OSError, ValueError):
        value = json.loads(path.read_bytes())
        if isinstance(value, dict):
            return value
    return {}


def write_json(path: Path, value: object) -> None:
    """Atomically: a reader sees the old or the new content."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        scratch.write_text(json.dumps(value, sort_keys=True))
        scratch.rename(path)
    except OSError:
        with suppress(OSError):
            scratch.unlink(missing_ok=True)
        raise


def list_pods(directories: Directories) -> Iterator[tuple[Path, dict[str, object]]]:
    """Directory and record of each pod, live ones first."""
    for place in (directories.pods, directories.records):
        for identifier in list_ids(place):
            record = read_json(place / identifier / "pod.json")
            if record:
                yield place / identifier, record
