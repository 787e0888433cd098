"""Directories of snapshots, and what to mount: the same as containerd's overlayfs snapshotter.

ROOT/snapshots/ID/fs      what the snapshot adds (the overlay's upper directory)
ROOT/snapshots/ID/work    the overlay's work directory, of active snapshots
ROOT/snapshots/new-*      being made
ROOT/snapshots/old-*      being removed
ROOT/empty                what lies below a container whose layers are inside the enclave

A directory whose name is no id of the store is nobody's: left by a process that was killed, or not yet removed.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from enclave_cc.errors import EnvironmentFault, foreign
from enclave_cc.record import record
from enclave_cc.wire.pb.snapshots import Kind, Mount

_BLOCK = 512  # bytes; the unit of st_blocks


@record
class Usage:
    """`size`: bytes on disk."""

    size: int
    inodes: int


class Overlay:
    """`root` must lie on a file system that can carry an overlay's upper directory."""

    def __init__(self, root: Path) -> None:
        self.snapshots = root / "snapshots"
        self.empty = root / "empty"
        # The kernel's index would tie an upper directory to its lower ones, and refuse a second mount of either.
        self.options = ("index=off",) if Path("/sys/module/overlay/parameters/index").exists() else ()

    def prepare(self) -> None:
        self.snapshots.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.empty.mkdir(exist_ok=True)
        self.empty.chmod(0o755)

    def upper(self, identifier: int) -> Path:
        return self.snapshots / str(identifier) / "fs"

    def work(self, identifier: int) -> Path:
        return self.snapshots / str(identifier) / "work"

    def make(self, identifier: int, kind: Kind, owner: Path | None, files: Mapping[str, str]) -> None:
        """Makes the directory of a snapshot in one step. `owner`: the directory whose owner the root gets;
        `files`: small text files inside, by path. Raises `EnvironmentFault`.
        """
        scratch = ""
        try:
            scratch = tempfile.mkdtemp(prefix="new-", dir=self.snapshots)
            upper, work = Path(scratch, "fs"), Path(scratch, "work")
            upper.mkdir()
            upper.chmod(0o755)
            if kind is Kind.ACTIVE:
                work.mkdir()
                work.chmod(0o711)
            if owner is not None:
                status = owner.lstat()
                os.lchown(upper, status.st_uid, status.st_gid)
            for name, text in files.items():
                path = upper / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.parent.chmod(0o755)
                path.write_text(text)
                path.chmod(0o644)
            final = self.snapshots / str(identifier)
            self.discard(final)  # of a transaction that was rolled back
            os.rename(scratch, final)  # noqa: PTH104
        except OSError as error:
            if scratch:
                shutil.rmtree(scratch, ignore_errors=True)
            raise _fault(error) from error

    def mounts(self, identifier: int, kind: Kind, lower: Sequence[Path]) -> tuple[Mount, ...]:
        """`lower`: the upper directories of the snapshot's ancestors, nearest first."""
        if not lower:
            return (_bind(self.upper(identifier), "rw" if kind is Kind.ACTIVE else "ro"),)
        if kind is not Kind.ACTIVE and len(lower) == 1:
            return (_bind(lower[0], "ro"),)
        options = list(self.options)
        if kind is Kind.ACTIVE:
            options += [f"workdir={self.work(identifier)}", f"upperdir={self.upper(identifier)}"]
        options.append("lowerdir=" + ":".join(map(str, lower)))
        return (Mount("overlay", "overlay", "", tuple(options)),)

    def measure(self, identifier: int) -> Usage:
        """What the snapshot itself takes; files linked several times count once. Raises `EnvironmentFault`."""
        seen: set[tuple[int, int]] = set()
        size = 0
        pending = [self.upper(identifier)]
        try:
            status = pending[0].lstat()
            seen.add((status.st_dev, status.st_ino))
            size += status.st_blocks * _BLOCK
            while pending:
                with os.scandir(pending.pop()) as entries:
                    for entry in entries:
                        try:
                            status = entry.stat(follow_symlinks=False)
                        except FileNotFoundError:
                            continue  # it is being written to
                        if (status.st_dev, status.st_ino) not in seen:
                            seen.add((status.st_dev, status.st_ino))
                            size += status.st_blocks * _BLOCK
                        if entry.is_dir(follow_symlinks=False):
                            pending.append(Path(entry.path))
        except OSError as error:
            raise _fault(error) from error
        return Usage(size, len(seen))

    def set_aside(self, identifiers: set[int]) -> list[Path]:
        """Renames directories of no snapshot, so that they can be removed at leisure while others are made.

        The caller sees to it that none is being made now. Raises `EnvironmentFault`.
        """
        known = {str(identifier) for identifier in identifiers}
        try:
            found = [path for path in self.snapshots.iterdir() if path.name not in known]
            return [path.rename(path.with_name(f"old-{os.urandom(8).hex()}")) for path in found]
        except OSError as error:
            raise _fault(error) from error

    @staticmethod
    def discard(directory: Path) -> None:
        """Removes what is there of `directory`; what cannot be removed now, the next start removes."""
        shutil.rmtree(directory, ignore_errors=True)


def _bind(source: Path, mode: str) -> Mount:
    return Mount("bind", str(source), "", (mode, "rbind"))


def _fault(error: OSError) -> EnvironmentFault:
    import errno

    code = "disk-full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "environment"
    return EnvironmentFault(code, f"a snapshot's directory: {foreign(error)}")
