"""Users and groups by the image's own /etc/passwd and /etc/group, with docker's rules (passwd(5), group(5)).

The files are read from inside the rootfs, after pivot_root or setns: a symlink in them cannot lead outside. What is in
them belongs to the image, and after the start to the workload, so they are bounded and never block.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence

from enclave_cc.errors import PeerError, foreign
from enclave_cc.record import record

FILE_LIMIT = 4 << 20
ID_LIMIT = (1 << 31) - 1  # docker's; the kernel's (uid_t)-1 is "unchanged"


@record
class Identity:
    """Whom a process runs as. `groups` are supplementary, `gid` first; `home` is an absolute path."""

    uid: int
    gid: int
    groups: tuple[int, ...]
    home: str


@record
class _User:
    name: str
    uid: int
    gid: int
    home: str


@record
class _Group:
    name: str
    gid: int
    members: tuple[str, ...]


def resolve(user: str, extra_groups: Sequence[str | int], passwd: str, group: str) -> Identity:
    """Whom `user` (`[user][:group]`, names or numbers; empty is uid 0) means, given both files' text.

    `extra_groups` (names or numbers) are added to the supplementary groups. A number needs no entry in the files.
    Raises `PeerError("launch-failed")` for a name that is in neither, or a number out of range.
    """
    user_part, _, group_part = user.partition(":")
    wanted = user_part or "0"
    found = next((entry for entry in _parse_passwd(passwd) if _matches(wanted, entry.name, entry.uid)), None)
    groups = list(_parse_group(group))
    if found is None:
        found = _User("", _parse_id(wanted, "user"), 0, "/")
    implied: list[int] = []
    gid = found.gid
    if group_part:
        gid = _find_gid(group_part, groups)
    elif found.name:
        implied = [entry.gid for entry in groups if found.name in entry.members]
    # The primary group is among them, lest dropping it by a setgid program win rights (CVE-2022-36109).
    supplementary = [gid, *implied, *(_find_gid(str(extra), groups) for extra in extra_groups)]
    home = found.home if found.home.startswith("/") else "/"
    return Identity(found.uid, gid, tuple(dict.fromkeys(supplementary)), home)


def read_database(path: str) -> str:
    """The text of /etc/passwd or /etc/group; empty when there is none. Raises `PeerError("launch-failed")`."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except OSError as error:
        raise PeerError("launch-failed", f"{path} of the image cannot be read: {error.strerror}") from error
    try:
        about = os.fstat(fd)
        if not stat.S_ISREG(about.st_mode):
            raise PeerError("launch-failed", f"{path} of the image is not a file")
        if about.st_size > FILE_LIMIT:
            raise PeerError("launch-failed", f"{path} of the image is larger than {FILE_LIMIT} bytes")
        chunks: list[bytes] = []
        left = FILE_LIMIT
        while left and (chunk := os.read(fd, min(left, 1 << 16))):
            chunks.append(chunk)
            left -= len(chunk)
    except OSError as error:
        raise PeerError("launch-failed", f"{path} of the image cannot be read: {error.strerror}") from error
    finally:
        os.close(fd)
    return b"".join(chunks).decode("utf-8", "surrogateescape")


def _parse_passwd(text: str) -> Iterator[_User]:
    for fields in _split_lines(text):
        if len(fields) >= 6 and (uid := _to_id(fields[2])) is not None:
            yield _User(fields[0], uid, _to_id(fields[3]) or 0, fields[5])


def _parse_group(text: str) -> Iterator[_Group]:
    for fields in _split_lines(text):
        if len(fields) >= 3 and (gid := _to_id(fields[2])) is not None:
            members = fields[3].split(",") if len(fields) > 3 else []
            yield _Group(fields[0], gid, tuple(name for name in members if name))


def _split_lines(text: str) -> Iterator[list[str]]:
    for line in text.split("\n"):
        clean = line.strip()
        if clean and not clean.startswith("#"):
            yield clean.split(":")


def _find_gid(wanted: str, groups: Sequence[_Group]) -> int:
    for entry in groups:
        if _matches(wanted, entry.name, entry.gid):
            return entry.gid
    return _parse_id(wanted, "group")


def _matches(wanted: str, name: str, number: int) -> bool:
    # A numeric argument is always an id, even where an entry has those digits as its name.
    as_id = _to_id(wanted)
    return number == as_id if as_id is not None else name == wanted


def _parse_id(text: str, what: str) -> int:
    value = _to_id(text)
    if value is None:
        raise PeerError("launch-failed", f"the image has no {what} {foreign(text)!r} (or it is out of range)")
    return value


def _to_id(text: str) -> int | None:
    if not text.isascii() or not text.isdigit() or len(text) > 10:
        return None
    value = int(text)
    return value if value <= ID_LIMIT else None
