"""The pod's control groups, on version 1, version 2 and the hybrid of both.

runc makes `/enclave-cc/POD/CONTAINER` and removes it; the pod's level and the counters are ours.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from enclave_cc.errors import UsageError, foreign

ROOT = Path("/sys/fs/cgroup")
PARENT = "enclave-cc"
_PLACE = re.compile(rf"/{PARENT}/([^/\n]+)/([^/\n]+)")


def is_unified() -> bool:
    """Version 2 alone; then every controller is in one tree."""
    return (ROOT / "cgroup.controllers").exists()


def path_of(pod: str, container: str) -> str:
    """OCI `linux.cgroupsPath`."""
    return f"/{PARENT}/{pod}/{container}"


def find_container(pid: int) -> tuple[str, str] | None:
    """(pod, container) of a process as the kernel knows it, or None when it is in none of ours."""
    try:
        with open(f"/proc/{pid}/cgroup") as file:  # noqa: PTH123 - on the path of every EREPORT
            found = _PLACE.search(file.read())
    except OSError:
        return None
    return (found[1], found[2]) if found else None


def resolve(path: str) -> str:
    """The place in the hierarchy of an OCI `linux.cgroupsPath`, which is `SLICE:PREFIX:NAME` where systemd makes groups.

    Raises `UsageError` for what is no group of a container's own: what is in a group dies with it.
    """
    if not path.strip("/") or ".." in path.split("/"):
        raise UsageError("usage", f"{foreign(path)!r} is no control group of a container")
    if path.count(":") != 2 or "/" in path:
        return path if path.startswith("/") else f"/{path}"
    unit, prefix, name = path.split(":")
    parents, grown = "", ""
    for part in unit.removesuffix(".slice").split("-") if unit not in ("", "-.slice") else []:
        grown = f"{grown}-{part}" if grown else part
        parents += f"/{grown}.slice"
    return f"{parents}/{prefix}-{name}.scope" if prefix else f"{parents}/{name}.scope"


def list_directories(place: str) -> Iterator[Path]:
    """The directories of a group, given by its place in the hierarchy, in each tree where it is."""
    roots = [ROOT] if is_unified() else [Path(entry.path) for entry in os.scandir(ROOT) if entry.is_dir(follow_symlinks=False)]
    return (root / place.lstrip("/") for root in roots if (root / place.lstrip("/")).is_dir())


def find_place(pid: int, places: Iterable[str]) -> str | None:
    """Which of the groups a process is in (or below), as the kernel knows it."""
    try:
        with open(f"/proc/{pid}/cgroup") as file:  # noqa: PTH123 - on the path of every EREPORT
            lines = {line.split(":", 2)[2].rstrip("\n") for line in file}
    except (OSError, IndexError):
        return None
    return next((place for place in places if any(line == place or line.startswith(place + "/") for line in lines)), None)


def list_processes_at(place: str) -> set[int]:
    """Processes in a group, and in those below it."""
    found: set[int] = set()
    for tree in list_directories(place):
        for directory, _, _ in os.walk(tree):
            with suppress(OSError, ValueError):
                found |= {int(line) for line in Path(directory, "cgroup.procs").read_text().split()}
    return found


def remove_at(place: str, *, deadline: float) -> bool:
    """Kills what is left in a group and removes it; False when some stayed until the deadline."""
    until = time.monotonic() + deadline
    while True:
        for pid in list_processes_at(place):
            with suppress(OSError):
                os.kill(pid, 9)
        left = False
        for tree in list(list_directories(place)):
            for directory, _, _ in os.walk(tree, topdown=False):
                try:
                    os.rmdir(directory)  # noqa: PTH106
                except FileNotFoundError:
                    pass
                except OSError:
                    left = True
        if not left:
            return True
        if time.monotonic() > until:
            return False
        time.sleep(0.005)


def count_oom_kills(pod: str, container: str) -> int:
    """How many processes of the container the kernel killed for want of memory."""
    return count_oom_kills_at(path_of(pod, container))


def count_oom_kills_at(place: str) -> int:
    """The same for a group given by its place in the hierarchy."""
    for directory, name in (("memory", "memory.oom_control"), ("", "memory.events")):
        try:
            text = (ROOT / directory / place.lstrip("/") / name).read_text()
        except OSError:
            continue
        found = re.search(r"^oom_kill (\d+)$", text, re.MULTILINE)
        if found:
            return int(found[1])
    return 0


def list_pods() -> set[str]:
    """Pods that have a control group."""
    found: set[str] = set()
    for tree in _trees():
        with suppress(OSError):
            found |= {entry.name for entry in os.scandir(tree) if entry.is_dir()}
    return found


def list_processes(pod: str) -> set[int]:
    """Processes in the pod's groups."""
    found: set[int] = set()
    for tree in _trees():
        for directory, _, _ in os.walk(tree / pod):
            with suppress(OSError, ValueError):
                found |= {int(line) for line in Path(directory, "cgroup.procs").read_text().split()}
    return found


def remove_pod(pod: str, *, deadline: float) -> bool:
    """Kills what is left in the pod's groups and removes them; False when some stayed until the deadline."""
    until = time.monotonic() + deadline
    while True:
        for pid in list_processes(pod):
            with suppress(OSError):
                os.kill(pid, 9)
        left = False
        for tree in _trees():
            for directory, _, _ in os.walk(tree / pod, topdown=False):
                try:
                    os.rmdir(directory)  # noqa: PTH106
                except FileNotFoundError:
                    pass
                except OSError:
                    left = True
        if not left:
            return True
        if time.monotonic() > until:
            return False
        time.sleep(0.005)


def _trees() -> Iterator[Path]:
    if is_unified():
        candidates = [ROOT / PARENT]
    else:
        candidates = [Path(entry.path, PARENT) for entry in os.scandir(ROOT) if entry.is_dir(follow_symlinks=False)]
    return (tree for tree in candidates if tree.is_dir())
