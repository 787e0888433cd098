"""The pod's control groups, on version 1, version 2 and the hybrid of both.

runc makes `/enclave-cc/POD/CONTAINER` and removes it; the pod's level and the counters are ours.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

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


def count_oom_kills(pod: str, container: str) -> int:
    """How many processes of the container the kernel killed for want of memory."""
    for directory, name in (("memory", "memory.oom_control"), ("", "memory.events")):
        try:
            text = (ROOT / directory / PARENT / pod / container / name).read_text()
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
