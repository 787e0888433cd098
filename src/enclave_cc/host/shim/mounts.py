"""Mounts that containerd asks for: the rootfs of the pause container, from its snapshotter."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from pathlib import Path

from enclave_cc.errors import EnvironmentFault, foreign
from enclave_cc.wire.pb.task import Mount

_FLAGS = {
    "ro": 1, "nosuid": 2, "nodev": 4, "noexec": 8, "sync": 16, "remount": 32, "dirsync": 128, "noatime": 1024,
    "nodiratime": 2048, "bind": 4096, "rbind": 4096 | 16384, "relatime": 1 << 21, "strictatime": 1 << 24,
}  # fmt: skip
_NONE = frozenset({"rw", "suid", "dev", "exec", "async", "defaults", "loud"})
_READ_ONLY, _BIND, _REMOUNT = 1, 4096, 32


def split_options(options: Sequence[str]) -> tuple[int, str]:
    """(flags, data) of mount(2) for fstab-style options."""
    flags, data = 0, []
    for option in options:
        if option in _FLAGS:
            flags |= _FLAGS[option]
        elif option not in _NONE:
            data.append(option)
    return flags, ",".join(data)


def mount_all(mounts: Sequence[Mount], target: Path) -> None:
    """Each on `target` (below it where it says so), in order. Raises `EnvironmentFault("mount-failed")`."""
    target.mkdir(exist_ok=True, mode=0o711)
    for mount in mounts:
        place = target / mount.target.lstrip("/") if mount.target else target
        flags, data = split_options(mount.options)
        _mount(mount.source, place, mount.type, flags, data)
        if flags & _BIND and flags & _READ_ONLY:  # the kernel heeds a bind's other flags at a second call only
            _mount(mount.source, place, mount.type, flags | _REMOUNT, data)


def find_top(mounts: Sequence[Mount]) -> Path:
    """Where the files lie that only this root file system has: an overlay's upper directory, or what is bound."""
    for mount in mounts:
        for option in mount.options:
            if option.startswith("upperdir="):
                return Path(option.removeprefix("upperdir="))
    return Path(mounts[0].source if mounts else "/nonexistent")


def _mount(source: str, place: Path, kind: str, flags: int, data: str) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(source.encode(), os.fsencode(place), kind.encode(), ctypes.c_ulong(flags), data.encode()) != 0:
        reason = os.strerror(ctypes.get_errno())
        raise EnvironmentFault("mount-failed", f"{foreign(kind)} {foreign(source)} at {place}: {reason}")
