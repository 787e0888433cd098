"""A tree on disk as plain values, so that two trees can be compared path by path."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any

# What the machine adds by itself to every file it stores.
_HOST_XATTRS = frozenset({"security.selinux"})


def snapshot(root: Path) -> dict[str, dict[str, Any]]:
    """Everything that a process can see of the tree at `root`, by path relative to it; the root itself is ".".

    Per path: type, mode, uid, gid, mtime (ns), nlink, names (all paths of the same inode), rdev, xattrs, target of a
    symbolic link, size and SHA-256 of a regular file. Directories have no size and nlink: file systems count them
    differently.
    """
    found: dict[str, dict[str, Any]] = {}
    names: dict[tuple[int, int], list[str]] = {}
    inodes: dict[str, tuple[int, int]] = {}
    base = os.fsencode(root)
    stack = [b""]
    while stack:
        relative = stack.pop()
        path = os.path.join(base, relative) if relative else base
        status = os.lstat(path)
        name = os.fsdecode(relative) or "."
        if stat.S_ISDIR(status.st_mode):
            stack += [os.path.join(relative, child) for child in os.listdir(path)]
        else:
            inodes[name] = (status.st_dev, status.st_ino)
            names.setdefault(inodes[name], []).append(name)
        found[name] = _describe(path, status)
    for name, inode in inodes.items():
        found[name]["names"] = sorted(names[inode])
    return found


def _describe(path: bytes, status: os.stat_result) -> dict[str, Any]:
    mode = status.st_mode
    seen: dict[str, Any] = {
        "type": stat.filemode(mode)[0],
        "mode": oct(stat.S_IMODE(mode)),
        "uid": status.st_uid,
        "gid": status.st_gid,
        "mtime": status.st_mtime_ns,
        "xattrs": {
            name: os.getxattr(path, name, follow_symlinks=False)
            for name in os.listxattr(path, follow_symlinks=False)
            if name not in _HOST_XATTRS
        },
    }
    if not stat.S_ISDIR(mode):
        seen["nlink"] = status.st_nlink
    if stat.S_ISLNK(mode):
        seen["target"] = os.readlink(path)
    if stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
        seen["rdev"] = (os.major(status.st_rdev), os.minor(status.st_rdev))
    if stat.S_ISREG(mode):
        with open(path, "rb") as file:
            seen["sha256"] = hashlib.file_digest(file, "sha256").hexdigest()
        seen["size"] = status.st_size
    return seen


def differences(
    expected: dict[str, dict[str, Any]], found: dict[str, dict[str, Any]], *, ignore_mtime_of: Iterable[str] = ()
) -> list[str]:
    """One line per difference; no line, no difference."""
    undated = frozenset(ignore_mtime_of)
    lines = [f"{path}: missing" for path in sorted(expected.keys() - found.keys())]
    lines += [f"{path}: not expected" for path in sorted(found.keys() - expected.keys())]
    for path in sorted(expected.keys() & found.keys()):
        for key in sorted(expected[path].keys() | found[path].keys()):
            if key == "mtime" and path in undated:
                continue
            if (want := expected[path].get(key)) != (have := found[path].get(key)):
                lines.append(f"{path}: {key}: expected {want!r}, found {have!r}")
    return lines
