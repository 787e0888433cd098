"""Where a process stands: what a fork of the fork server takes over from whoever asked for it, and what must be alike.

A shim that was started plainly inherits all of this from containerd. A fork inherits it from the fork server, which runs
in another service: control groups (it would die with that service), OOM score, limits, priority, processors, umask, ignored
and blocked signals are taken over; identity, privileges, namespaces, root, security label and kind of scheduling are not,
and must be the same already.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # `signal` makes enumerations, which forks would copy
import ctypes
import os
import resource
from contextlib import suppress
from pathlib import Path

_NAMESPACES = ("cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts")
_ALIKE = (b"Uid:", b"Gid:", b"Groups:", b"CapInh:", b"CapPrm:", b"CapEff:", b"CapBnd:", b"CapAmb:", b"NoNewPrivs:", b"Seccomp:")
_LIMITS = sorted({value for name, value in vars(resource).items() if name.startswith("RLIMIT_")})
_CGROUPS = Path("/sys/fs/cgroup")


def take_over(pid: int) -> None:
    """Stands this process where process `pid` stands. Raises `OSError`, `ValueError` when it cannot; it is of no use then.

    Written to look at little: each page that a fork touches is its own from then on.
    """
    there, here = f"/proc/{pid}/", "/proc/self/"
    status = _read(f"{there}status").split(b"\n")
    own = _read(f"{here}status").split(b"\n")
    if [line for line in status if line.startswith(_ALIKE)] != [line for line in own if line.startswith(_ALIKE)]:
        raise ValueError("other privileges")
    for name in _NAMESPACES:
        if _read_link(f"{there}ns/{name}") != _read_link(f"{here}ns/{name}"):
            raise ValueError(f"another {name} namespace")
    root, own_root = os.stat(f"{there}root"), os.stat("/")  # noqa: PTH116
    if (root.st_dev, root.st_ino) != (own_root.st_dev, own_root.st_ino):
        raise ValueError("another root")
    if _read_label(there) != _read_label(here):
        raise ValueError("another security label")
    if os.sched_getscheduler(pid) != os.sched_getscheduler(0):
        raise ValueError("another scheduling")
    os.umask(next(int(line[6:], 8) for line in status if line.startswith(b"Umask:")))
    groups = _read(f"{there}cgroup")
    if groups != _read(f"{here}cgroup"):
        join_groups(groups.decode())
    score = _read(f"{there}oom_score_adj")
    if score != _read(f"{here}oom_score_adj"):
        _write(f"{here}oom_score_adj", score)
    if _read(f"{there}limits") != _read(f"{here}limits"):
        for limit in _LIMITS:
            resource.setrlimit(limit, resource.prlimit(pid, limit))
    priority = os.getpriority(os.PRIO_PROCESS, pid)
    if priority != os.getpriority(os.PRIO_PROCESS, 0):
        os.setpriority(os.PRIO_PROCESS, 0, priority)
    processors = os.sched_getaffinity(pid)
    if processors != os.sched_getaffinity(0):
        os.sched_setaffinity(0, processors)
    _take_over_signals(status, own)


def _take_over_signals(status: list[bytes], own: list[bytes]) -> None:
    """What is ignored and what is blocked: programs inherit both, down to the workload."""
    there, here = _read_signals(status, b"SigIgn:"), _read_signals(own, b"SigIgn:")
    for number in range(1, _signal.NSIG):
        if (there ^ here) >> (number - 1) & 1:
            _signal.signal(number, _signal.SIG_IGN if there >> (number - 1) & 1 else _signal.SIG_DFL)
    blocked = _read_signals(status, b"SigBlk:")
    if blocked != _read_signals(own, b"SigBlk:"):
        _signal.pthread_sigmask(_signal.SIG_SETMASK, [n for n in range(1, _signal.NSIG) if blocked >> (n - 1) & 1])


def _read_signals(status: list[bytes], name: bytes) -> int:
    return next(int(line[len(name) :], 16) for line in status if line.startswith(name))


def join_groups(listed: str) -> None:
    """Moves this process into the control groups of a /proc/PID/cgroup. Raises `OSError`."""
    for line in listed.splitlines():
        _, controllers, place = line.split(":", 2)
        tree = _CGROUPS / controllers.removeprefix("name=")
        if not controllers and not (_CGROUPS / "cgroup.controllers").exists():
            tree = _CGROUPS / "unified"  # the hybrid's second tree, where it is mounted
        if tree.is_dir():
            _write(f"{tree}{place.rstrip('/')}/cgroup.procs", b"0")


def close_all_but(kept: set[int]) -> None:
    """Closes every descriptor but these; standard streams become /dev/null."""
    null = os.open("/dev/null", os.O_RDWR)
    for number in (0, 1, 2):
        if number not in kept:
            os.dup2(null, number)
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208
        if int(name) > 2 and int(name) not in kept:
            with suppress(OSError):
                os.close(int(name))


def show_as(words: list[str]) -> None:
    """What ps shows as this process's name and command line, as far as that has room: the kernel reads it where it put our own."""
    with suppress(OSError):
        _write("/proc/self/comm", os.fsencode(os.path.basename(words[0])))  # noqa: PTH119
    text = b"".join(os.fsencode(word) + b"\0" for word in words)
    with suppress(OSError, IndexError, ValueError):
        numbers = _read("/proc/self/stat").rpartition(b")")[2].split()
        start, end = int(numbers[45]), int(numbers[46])  # arg_start, arg_end: fields 48 and 49 of proc(5)
        if 0 < start < end:
            ctypes.memmove(start, text.ljust(end - start, b"\0")[: end - start - 1], end - start - 1)


def _read(path: str) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(descriptor, 1 << 16)
    finally:
        os.close(descriptor)


def _write(path: str, text: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, text)
    finally:
        os.close(descriptor)


def _read_link(path: str) -> str:
    """Empty on a kernel without that namespace."""
    try:
        return os.readlink(path)  # noqa: PTH115
    except FileNotFoundError:
        return ""


def _read_label(place: str) -> bytes:
    try:
        return _read(f"{place}attr/current")
    except OSError:
        return b""
