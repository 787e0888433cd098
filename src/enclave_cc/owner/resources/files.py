"""Objects as files under one directory, which belongs to this program alone (mode 0700).

    REPOSITORY/TYPE/TAG/head    what is known of the path; replaced by rename
    REPOSITORY/TYPE/TAG/3       the value of version 3
    REPOSITORY/TYPE/TAG/.new    what a killed writer left; the next one writes over it
    .locks/                     flock(2)

A name that is not a plain lower-case segment of 200 characters is written so that neither case-folding nor
name limits of a file system can make two of them one: `A` is `+a`, and a long name is a directory `FIRST-200~/REST`.
Segments of a `ResourcePath` cannot begin with a dot, hold a slash or be empty, so that no name leads elsewhere.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from contextlib import AbstractContextManager
from itertools import takewhile
from pathlib import Path

from enclave_cc.errors import EnvironmentFault, UsageError, explain_os_error
from enclave_cc.owner.resources.locks import PathLocks
from enclave_cc.wire.rcar.uri import ResourcePath

_CHUNK = 200
_END = "\x7f"  # behind every character of a path
_ENTRY = re.compile(r"(?:[a-z0-9_.-]|\+[a-z])+~?\Z")


class FileObjects:
    """An `ObjectStore` on a directory. Safe for many threads, and for many processes of one machine."""

    def __init__(self, directory: Path, *, deadline: float = 10.0) -> None:
        """Makes the directory if it is absent. Raises `UsageError("bad-config")` if others may write to it."""
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            mode = directory.stat().st_mode
        except OSError as error:
            raise explain_os_error(error, str(directory)) from error
        if not stat.S_ISDIR(mode) or mode & 0o022:
            raise UsageError("bad-config", f"{directory} is not a directory that its owner alone writes to", "chmod 0700 it.")
        self._root = directory
        self._locks = PathLocks(directory / ".locks", deadline=deadline)

    def lock(self, name: str) -> AbstractContextManager[None]:
        return self._locks.hold(name)

    def read_head(self, name: str) -> bytes | None:
        return _read(self._place(name) / "head")

    def write_head(self, name: str, data: bytes) -> None:
        self._replace(self._place(name), "head", data)

    def read_value(self, name: str, version: int) -> bytes | None:
        return _read(self._place(name) / str(version))

    def write_value(self, name: str, version: int, data: bytes) -> None:
        self._replace(self._place(name), str(version), data)

    def remove_value(self, name: str, version: int) -> None:
        try:
            (self._place(name) / str(version)).unlink(missing_ok=True)
        except OSError as error:
            raise explain_os_error(error) from error

    def list_names(self, prefix: str, after: str) -> Iterator[str]:
        return _walk(self._root, "", 3, prefix, after)

    def _place(self, name: str) -> Path:
        path = ResourcePath.parse(name)  # whoever calls: a name is checked where it becomes a file's
        place = self._root
        for segment in (path.repository, path.type, path.tag):
            place = place.joinpath(*_encode(segment))
        return place

    def _replace(self, place: Path, name: str, data: bytes) -> None:
        try:
            if not (place / "head").exists():
                self._make(place)
            new = place / ".new"
            descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            new.replace(place / name)
            _sync(place)
        except OSError as error:
            raise explain_os_error(error) from error

    def _make(self, place: Path) -> None:
        """Makes a path's directory, and has it and those above it on disk, whoever made them."""
        above = list(takewhile(lambda each: each != self._root, (place, *place.parents)))
        for each in reversed(above):
            each.mkdir(mode=0o700, exist_ok=True)
        for each in above:
            _sync(each.parent)


def _encode(segment: str) -> list[str]:
    text = re.sub("[A-Z]", lambda match: "+" + match[0].lower(), segment)
    chunks = []
    while len(text) > _CHUNK:
        cut = _CHUNK - (text[_CHUNK - 1] == "+")
        chunks.append(text[:cut] + "~")
        text = text[cut:]
    return [*chunks, text]


def _decode(text: str) -> str:
    return re.sub(r"\+([a-z])", lambda match: match[1].upper(), text)


def _walk(directory: Path, base: str, depth: int, prefix: str, after: str) -> Iterator[str]:
    """Names below `directory`, whose own name is `base`, with `depth` segments to come."""
    end = "/" if depth > 1 else ""
    for segment, place in sorted((segment + end, place) for segment, place in _segments(directory, "")):
        name = base + segment
        if not name.startswith(prefix) and not prefix.startswith(name):
            continue
        if depth > 1:
            if name + _END > after:
                yield from _walk(place, name, depth - 1, prefix, after)
        elif name > after and name.startswith(prefix):
            yield name


def _segments(directory: Path, begun: str) -> Iterator[tuple[str, Path]]:
    try:
        with os.scandir(directory) as entries:
            found = [entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir(follow_symlinks=False)]
    except FileNotFoundError:
        return
    except OSError as error:
        raise explain_os_error(error) from error
    for entry in found:
        if _ENTRY.match(entry) is None:
            raise EnvironmentFault("store-failed", f"{directory} holds something that this program did not put there")
        if entry.endswith("~"):
            yield from _segments(directory / entry, begun + entry[:-1])
        else:
            yield _decode(begun + entry), directory / entry


def _read(path: Path) -> bytes | None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            return file.read()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise explain_os_error(error) from error


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
