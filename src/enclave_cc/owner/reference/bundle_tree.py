"""The files of a bundle's root file system while it is put together: in memory, in canonical form.

Nothing of the building machine comes in but bytes: modes are normalised here, owners and times do not exist in the
manifest, and order is by path. That is what makes the same inputs give the same MRENCLAVE anywhere.
"""

from __future__ import annotations

import os
from pathlib import Path

from enclave_cc.errors import UsageError
from enclave_cc.record import record

DIRECTORY_MODE = 0o755
FILE_MODE = 0o644
PROGRAM_MODE = 0o755


@record
class Node:
    """A regular file (`content`), a symbolic link (`target`) or, with neither, a directory."""

    mode: int
    content: bytes | None = None
    target: str | None = None

    @property
    def kind(self) -> str:
        return "file" if self.content is not None else "link" if self.target is not None else "directory"


class BundleTree:
    """Paths, absolute inside the enclave, and what they hold."""

    def __init__(self) -> None:
        self._nodes: dict[str, Node] = {}

    def add_directory(self, path: str) -> None:
        self._add_parents(path)
        self._nodes.setdefault(path, Node(DIRECTORY_MODE))

    def add_file(self, path: str, content: bytes, *, program: bool = False) -> None:
        """Raises `UsageError` when two different files claim one path."""
        node = Node(PROGRAM_MODE if program else FILE_MODE, content=content)
        self._claim(path, node)

    def add_link(self, path: str, target: str) -> None:
        self._claim(path, Node(0o777, target=target))

    def items(self) -> list[tuple[str, Node]]:
        """Sorted by path, so that a directory stands before what it holds."""
        return sorted(self._nodes.items())

    def write(self, directory: Path) -> None:
        """Writes the tree below `directory`, which must exist and be empty."""
        for path, node in self.items():
            place = directory / path.lstrip("/")
            if node.content is not None:
                place.write_bytes(node.content)
                place.chmod(node.mode)
            elif node.target is not None:
                place.symlink_to(node.target)
            else:
                place.mkdir(exist_ok=True)
                place.chmod(node.mode)

    def _claim(self, path: str, node: Node) -> None:
        self._add_parents(path)
        if self._nodes.setdefault(path, node) != node:
            raise UsageError("usage", f"two inputs of the bundle claim {path} with different content")

    def _add_parents(self, path: str) -> None:
        parent = os.path.dirname(path)  # noqa: PTH120 - these are paths of another root, never of this machine
        while parent not in {"", "/"} and parent not in self._nodes:
            self._nodes[parent] = Node(DIRECTORY_MODE)
            parent = os.path.dirname(parent)  # noqa: PTH120
