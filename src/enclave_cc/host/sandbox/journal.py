"""What a pod has laid hands on, written down before it does.

One JSON line a step, appended in one write. Whoever takes a pod down, its own supervisor or the next command after a
crash, reads the lines and undoes them in reverse; undoing what was never done, or was undone before, is no error. A
line that a crash cut short belongs to a step that was not begun.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path

from enclave_cc.record import field, record


class Kind(StrEnum):
    """What a step makes, outside the pod's own directory."""

    CONTAINER = "container"  # id: runc's; group: its control group, when that is not below the pod's own
    MOUNT = "mount"  # path: a mount outside the pod's directory
    CGROUP = "cgroup"  # the pod's control groups
    NETWORK = "network"  # container, netns: an attachment by CNI
    LEASE = "lease"  # path: pins blobs of the node's cache
    NAME = "name"  # path: the pod's name


@record
class Step:
    """One line; `details` by kind."""

    kind: Kind
    details: Mapping[str, str] = field(default_factory=dict)


class Journal:
    """The open journal of one pod."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def note(self, kind: Kind, **details: str) -> None:
        """Call before the step. What the disk must survive is a killed process, not a power cut: /run is memory."""
        line = json.dumps({"kind": kind, **details}, sort_keys=True) + "\n"
        os.write(self._descriptor, line.encode())

    def close(self) -> None:
        os.close(self._descriptor)


def read(path: Path) -> list[Step]:
    """The steps in order; an absent journal has none."""
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    steps = []
    for line in lines[:-1]:  # behind the last newline stands nothing, or a line cut short
        try:
            members = json.loads(line)
            steps.append(Step(Kind(members.pop("kind")), members))
        except (ValueError, KeyError, AttributeError):
            continue
    return steps
