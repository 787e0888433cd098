"""Changes to the machine that are written down before they are made, and can be taken back byte for byte.

The record is the only state: a file that lists the changes in order, each with what was there before and what was put
there. Undoing first looks whether every change can be taken back, then does it in reverse; what was never made, because
the program was killed, is skipped.
"""

from __future__ import annotations

import base64
import json
import os
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from enclave_cc.errors import EnvironmentFault, UsageError, foreign
from enclave_cc.record import record


@record
class Status:
    """Of a file that is replaced."""

    mode: int
    uid: int
    gid: int
    mtime_ns: int


@record
class Change:
    """`kind`: "directory" (made when absent), "link" (`after` is its target) or "file".

    `before` is None for what was not there. `piece`: the text that was inserted into a file of somebody else's, so that
    it can be taken out again after further changes.
    """

    path: Path
    kind: str
    after: bytes = b""
    before: bytes | None = None
    status: Status | None = None
    piece: str = ""


def replace_file(path: Path, after: bytes, *, piece: str = "") -> Change:
    """The change that makes `path` hold `after`, from what is there now. Raises `EnvironmentFault`."""
    try:
        status = path.stat()
        before = path.read_bytes()
    except FileNotFoundError:
        return Change(path, "file", after, piece=piece)
    except OSError as error:
        raise _fault(error) from error
    kept = Status(status.st_mode & 0o7777, status.st_uid, status.st_gid, status.st_mtime_ns)
    return Change(path, "file", after, before, kept, piece)


def apply(record: Path, changes: list[Change], note: dict[str, Any]) -> None:
    """Writes the record, then makes the changes. Raises `EnvironmentFault`; what was made can be undone then."""
    try:
        record.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        _write(record, json.dumps({**note, "version": 1, "changes": [_to_json(c) for c in changes]}, indent=1).encode(), 0o600)
        for change in changes:
            if change.kind == "directory":
                change.path.mkdir(mode=0o755)
            elif change.kind == "link":
                change.path.symlink_to(os.fsdecode(change.after))
            else:
                _write(change.path, change.after, change.status.mode if change.status else _mode_of(change.after), change.status)
    except OSError as error:
        raise _fault(error) from error


def _mode_of(content: bytes) -> int:
    return 0o755 if content.startswith(b"#!") else 0o644


def read_record(record: Path) -> tuple[list[Change], dict[str, Any]] | None:
    """None when there is none. Raises `EnvironmentFault` when it cannot be read."""
    try:
        document = json.loads(record.read_bytes())
        return [_from_json(item) for item in document["changes"]], document
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EnvironmentFault("environment", f"{record} cannot be read: {foreign(error)}") from error


def undo(record: Path) -> list[Path]:
    """Takes back what the record lists and removes it; returns the paths. Raises `UsageError`: "not-found" without a
    record, "wrong-state" when something was changed meanwhile where we had changed it; nothing is touched then.
    """
    found = read_record(record)
    if found is None:
        raise UsageError("not-found", "enclave-cc is not set up in containerd here")
    steps = [(change, _plan_undo(change)) for change in reversed(found[0])]
    try:
        for change, content in steps:
            _scratch_of(change.path).unlink(missing_ok=True)  # of a writer that was killed
            _take_back(change, content)
        record.unlink()
        for directory in (record.parent, record.parent.parent):
            with suppress(OSError):  # others use them too
                directory.rmdir()
    except OSError as error:
        raise _fault(error) from error
    return [change.path for change, content in steps if content is not _NOTHING]


def is_intact(change: Change) -> bool:
    """Whether what was put there is still there."""
    try:
        if change.kind == "directory":
            return change.path.is_dir()
        if change.kind == "link":
            return os.fsencode(change.path.readlink()) == change.after
        current = change.path.read_bytes()
    except OSError:
        return False
    return current == change.after or (bool(change.piece) and current.count(change.piece.encode()) == 1)


_NOTHING, _REMOVE, _RESTORE = object(), object(), object()


def _plan_undo(change: Change) -> object:
    """What to do: nothing, remove, restore, or the bytes to write."""
    try:
        if change.kind == "directory":
            return _REMOVE if change.path.is_dir() else _NOTHING
        if change.kind == "link":
            if not change.path.is_symlink() and not change.path.exists():
                return _NOTHING
            if change.path.is_symlink() and os.fsencode(change.path.readlink()) == change.after:
                return _REMOVE
            raise _changed(change.path)
        current = change.path.read_bytes()
    except FileNotFoundError:
        if change.before is None:
            return _NOTHING
        raise _changed(change.path) from None
    except OSError as error:
        raise _fault(error) from error
    if current == change.after:
        return _REMOVE if change.before is None else _RESTORE
    if current == change.before:
        return _NOTHING
    piece = change.piece.encode()
    if not piece or current.count(piece) != 1:
        raise _changed(change.path)
    return current.replace(piece, b"")


def _take_back(change: Change, content: object) -> None:
    if content is _REMOVE:
        if change.kind == "directory":
            with suppress(OSError):
                change.path.rmdir()  # others may have put something there
        else:
            change.path.unlink()
    elif content is _RESTORE:
        status = change.status or Status(0o644, 0, 0, 0)
        _write(change.path, change.before or b"", status.mode, status, mtime=True)
    elif isinstance(content, bytes):
        now = change.path.stat()
        _write(change.path, content, now.st_mode & 0o7777, Status(0, now.st_uid, now.st_gid, 0))


def _write(path: Path, content: bytes, mode: int, status: Status | None = None, *, mtime: bool = False) -> None:
    """Atomically; owner and mode as said."""
    scratch = _scratch_of(path)
    with scratch.open("wb") as file:
        os.fchmod(file.fileno(), mode)
        if status is not None:
            os.fchown(file.fileno(), status.uid, status.gid)
            os.fchmod(file.fileno(), mode)  # chown takes set-id bits away
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    if status is not None and mtime:
        os.utime(scratch, ns=(status.mtime_ns, status.mtime_ns))
    scratch.replace(path.resolve())  # a link to the file stays a link


def _scratch_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.enclave-cc")


def _changed(path: Path) -> UsageError:
    return UsageError(
        "wrong-state",
        f"{path} was changed since enclave-cc was set up, where enclave-cc had changed it",
        "Take enclave-cc's part out by hand, or put back what was there, then run this again.",
    )


def _fault(error: OSError) -> EnvironmentFault:
    import errno

    return EnvironmentFault("disk-full" if error.errno == errno.ENOSPC else "environment", foreign(error))


def _to_json(change: Change) -> dict[str, Any]:
    return {
        "path": str(change.path),
        "kind": change.kind,
        "after": base64.b64encode(change.after).decode(),
        "before": None if change.before is None else base64.b64encode(change.before).decode(),
        "status": asdict(change.status) if change.status else None,
        "piece": change.piece,
    }


def _from_json(item: dict[str, Any]) -> Change:
    return Change(
        path=Path(item["path"]),
        kind=item["kind"],
        after=base64.b64decode(item["after"]),
        before=None if item["before"] is None else base64.b64decode(item["before"]),
        status=Status(**item["status"]) if item["status"] else None,
        piece=item["piece"],
    )
