"""Which image containerd takes a container for, told by the snapshotter to the shim.

containerd names the shim no manifest, and a tag may move between its pull and the agent's. The snapshotter, which sees the
manifest, lists in the container's empty root file system those that have its stack of layers; the shim compares them with
what the agent verified. Both are the host's programs: this keeps the cluster's view right, it is no protection from the host.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

FILE = ".enclave-cc/manifests.json"
_LIMIT = 1 << 20


def encode(digests: Iterable[str]) -> str:
    return json.dumps(sorted(digests))


def read(root: Path) -> frozenset[str]:
    """The manifest digests listed below `root`; none when there is no such list."""
    try:
        with (root / FILE).open("rb") as file:
            listed = json.loads(file.read(_LIMIT))
    except (OSError, ValueError):
        return frozenset()
    return frozenset(map(str, listed)) if isinstance(listed, list) else frozenset()
