"""Which image containerd takes a container for, told by the snapshotter to the shim.

containerd names the shim no manifest, and a tag may move between its pull and the agent's. The snapshotter, which sees the
manifest, lists in the container's empty root file system those that have its stack of layers; the shim compares them with
what the agent verified. CRI takes manifests of one configuration for one image and starts it under any of their names: that
too can be told from the list. Snapshotter and shim are the host's programs: this keeps the cluster's view right, it is no
protection from the host.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

FILE = ".enclave-cc/manifests.json"
_LIMIT = 1 << 20


def encode(configurations: Mapping[str, str]) -> str:
    """`configurations`: the digest of each manifest's configuration by the manifest's own."""
    return json.dumps(dict(configurations), sort_keys=True)


def read(root: Path) -> dict[str, str]:
    """What is listed below `root`, as it was encoded; nothing when there is no such list."""
    try:
        with (root / FILE).open("rb") as file:
            listed = json.loads(file.read(_LIMIT))
    except (OSError, ValueError):
        return {}
    return {str(manifest): str(found) for manifest, found in listed.items()} if isinstance(listed, dict) else {}


def find_namesakes(known: Mapping[str, str], manifest: str) -> list[str]:
    """The manifests that CRI cannot tell from this one."""
    return sorted(other for other, found in known.items() if found == known.get(manifest) and other != manifest)
