"""The Merkle tree of RFC 6962 and RFC 9162, section 2.1, over SHA-256.

A *node* (level, index) is the root of the complete subtree over the leaves [index << level, (index + 1) << level).
A *compact range* is what one must keep of a tree to go on appending: the nodes of its complete subtrees, at most one
per level.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from enclave_cc.errors import PeerError
from enclave_cc.record import record

HASH_SIZE = 32
MAX_SIZE = 1 << 62  # leaves: what a signed 64-bit column of a database holds, and more than anybody appends
EMPTY_ROOT = hashlib.sha256(b"").digest()


@record
class Node:
    """The root `hash` of a complete subtree of `1 << level` leaves."""

    level: int
    index: int
    hash: bytes


def hash_leaf(data: bytes) -> bytes:
    """RFC 9162, 2.1.1: SHA-256(0x00 || data)."""
    return hashlib.sha256(b"\0" + data).digest()


def hash_children(left: bytes, right: bytes) -> bytes:
    """RFC 9162, 2.1.1: SHA-256(0x01 || left || right)."""
    return hashlib.sha256(b"\1" + left + right).digest()


def fold(hashes: Iterable[bytes]) -> bytes:
    """The root over complete subtrees that follow each other, the largest first."""
    ordered = list(hashes)
    if not ordered:
        return EMPTY_ROOT
    root = ordered.pop()
    while ordered:
        root = hash_children(ordered.pop(), root)
    return root


class CompactRange:
    """The complete subtrees of a tree of `size` leaves. Appending costs one hash on average, a root log2(size)."""

    __slots__ = ("_hashes", "size")

    def __init__(self, size: int = 0, hashes: Iterable[bytes] = ()) -> None:
        self.size = size
        self._hashes = list(hashes)

    @classmethod
    def decode(cls, size: int, data: bytes) -> CompactRange:
        """Of `encode`. Raises `PeerError("malformed")` unless there is one hash for each bit of `size`."""
        if not 0 <= size <= MAX_SIZE or len(data) != HASH_SIZE * size.bit_count():
            raise PeerError("malformed", "the compact range does not fit the size of its tree")
        return cls(size, (data[at : at + HASH_SIZE] for at in range(0, len(data), HASH_SIZE)))

    def encode(self) -> bytes:
        """The hashes, the largest subtree's first."""
        return b"".join(self._hashes)

    def append(self, leaf: bytes) -> list[Node]:
        """Adds a leaf's hash; the nodes that are complete since, the leaf's own left out."""
        completed = []
        level, index, node = 0, self.size, leaf
        while index & 1:
            level, index, node = level + 1, index >> 1, hash_children(self._hashes.pop(), node)
            completed.append(Node(level, index, node))
        self._hashes.append(node)
        self.size += 1
        return completed

    def root(self) -> bytes:
        return fold(self._hashes)
