"""Capability names (include/uapi/linux/capability.h) and what a process keeps of them."""

from __future__ import annotations

import os
from collections.abc import Iterable

from enclave_cc.enclave.boot import syscalls
from enclave_cc.errors import PeerError, foreign

NAMES = (
    "CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP", "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW", "IPC_LOCK", "IPC_OWNER", "SYS_MODULE", "SYS_RAWIO",
    "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT", "SYS_ADMIN", "SYS_BOOT", "SYS_NICE", "SYS_RESOURCE", "SYS_TIME",
    "SYS_TTY_CONFIG", "MKNOD", "LEASE", "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP", "MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG",
    "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ", "PERFMON", "BPF", "CHECKPOINT_RESTORE",
)  # fmt: skip
SYS_ADMIN = 1 << NAMES.index("SYS_ADMIN")


def parse_names(names: Iterable[str]) -> int:
    """The bit mask of capability names, with or without `CAP_`. Raises `PeerError("launch-failed")` for an unknown one."""
    mask = 0
    for name in names:
        short = name.upper().removeprefix("CAP_")
        if short not in NAMES:
            raise PeerError("launch-failed", f"there is no capability {foreign(name)!r}")
        mask |= 1 << NAMES.index(short)
    return mask


def list_names(mask: int) -> list[str]:
    """The names of the set bits."""
    return [name for bit, name in enumerate(NAMES) if mask >> bit & 1]


def bound(allowed: int) -> int:
    """Drops everything but `allowed` from the bounding set; returns the part of `allowed` that this process has.

    A capability that the host did not give cannot be had: the workload runs without it, as under runc.
    """
    available = syscalls.get_permitted_capabilities() & allowed
    bit = 0
    while True:
        try:
            held = syscalls.prctl(syscalls.PR_CAPBSET_READ, bit)
        except OSError:  # EINVAL: the kernel knows no more
            return available
        if held and not available >> bit & 1:
            syscalls.prctl(syscalls.PR_CAPBSET_DROP, bit)
        bit += 1


def switch_user(uid: int, gid: int, groups: Iterable[int], allowed: int, ambient: int = 0) -> None:
    """Becomes `uid`:`gid` with `allowed` capabilities, as docker does: root holds them, others none until they exec up.

    Inheritable and ambient sets end as `ambient`: what others hold, and keep over execve.
    """
    syscalls.prctl(syscalls.PR_CAP_AMBIENT, syscalls.PR_CAP_AMBIENT_CLEAR_ALL)
    syscalls.prctl(syscalls.PR_SET_KEEPCAPS, 1)
    # The primary group too: a directory that shuts a group out must not open to who drops it (CVE-2022-36109).
    os.setgroups(list(dict.fromkeys((gid, *groups))))
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    syscalls.prctl(syscalls.PR_SET_KEEPCAPS, 0)
    held = allowed if uid == 0 else ambient
    syscalls.set_capabilities(held, held, ambient)
    for bit in range(ambient.bit_length()):
        if ambient >> bit & 1:
            syscalls.prctl(syscalls.PR_CAP_AMBIENT, syscalls.PR_CAP_AMBIENT_RAISE, bit)
    # A change of credentials resets this to fs.suid_dumpable, which is the host's to choose.
    syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)
