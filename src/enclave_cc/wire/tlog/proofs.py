"""Inclusion and consistency proofs: RFC 9162, sections 2.1.3 and 2.1.4.

Making one reads O(log size) nodes through a `Reader`; verifying one needs nothing but the roots.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from enclave_cc.errors import PeerError, UsageError
from enclave_cc.wire.tlog.tree import EMPTY_ROOT, HASH_SIZE, MAX_SIZE, fold, hash_children

# A tree of MAX_SIZE leaves has 62 levels; a consistency proof may have one hash more than that.
MAX_HASHES = 63

Reader = Callable[[int, int], bytes]
"""(level, index) of a complete subtree to its hash."""


def compute_root(size: int, read: Reader) -> bytes:
    """The root of the tree over the first `size` leaves."""
    return EMPTY_ROOT if size == 0 else _root_of(0, size, read)


def prove_inclusion(index: int, size: int, read: Reader) -> list[bytes]:
    """The hashes that lead from leaf `index` to the root over `size` leaves (2.1.3.1).

    Raises `UsageError("usage")` unless 0 <= index < size."""
    if not 0 <= index < size <= MAX_SIZE:
        raise UsageError("usage", f"there is no leaf {index} in a tree of {size}")
    proof, begin, end = [], 0, size
    while end - begin > 1:
        middle = begin + _split(end - begin)
        if index < middle:
            proof.append(_root_of(middle, end, read))
            end = middle
        else:
            proof.append(_root_of(begin, middle, read))
            begin = middle
    return proof[::-1]


def prove_consistency(old: int, new: int, read: Reader) -> list[bytes]:
    """The hashes that show the tree of `old` leaves to be the beginning of that of `new` (2.1.4.1).

    Empty when the two are one tree, or the old one is empty. Raises `UsageError("usage")` unless 0 <= old <= new."""
    if not 0 <= old <= new <= MAX_SIZE:
        raise UsageError("usage", f"a tree of {old} leaves is not the beginning of one of {new}")
    if old in (0, new):
        return []
    proof, begin, end, known = [], 0, new, True
    while end != old:
        middle = begin + _split(end - begin)
        if old <= middle:
            proof.append(_root_of(middle, end, read))
            end = middle
        else:
            proof.append(_root_of(begin, middle, read))
            begin, known = middle, False
    if not known:  # the verifier has the whole old root, no part of it
        proof.append(_root_of(begin, end, read))
    return proof[::-1]


def verify_inclusion(leaf: bytes, index: int, size: int, root: bytes, proof: Sequence[bytes]) -> bytes:
    """Returns `leaf` (a leaf's hash) when `proof` leads from it, at `index`, to `root` over `size` leaves.

    RFC 9162, 2.1.3.2:

    1. The index lies in the tree, and no hash has another length.
    2. Each hash of the proof has a place in the path, left or right of what was computed so far.
    3. The path ends at the root, and that is `root`.

    Raises `PeerError("audit-broken")`.
    """
    # 1
    if not 0 <= index < size <= MAX_SIZE:
        raise PeerError("audit-broken", f"the inclusion proof is for leaf {index} of a tree of {size}, which cannot be")
    _check_hashes(proof)
    # 2
    at, last, computed = index, size - 1, leaf
    for step in proof:
        if last == 0:
            raise PeerError("audit-broken", f"the inclusion proof of entry {index} has hashes to spare")
        if at & 1 or at == last:
            computed = hash_children(step, computed)
            while not at & 1 and at != 0:
                at, last = at >> 1, last >> 1
        else:
            computed = hash_children(computed, step)
        at, last = at >> 1, last >> 1
    # 3
    if last != 0 or computed != root:
        raise PeerError("audit-broken", f"the inclusion proof of entry {index} does not lead to the root of {size} entries")
    return leaf


def verify_consistency(old: int, old_root: bytes, new: int, new_root: bytes, proof: Sequence[bytes]) -> bytes:
    """Returns `new_root` when `proof` shows the tree of `old` leaves to be the beginning of that of `new`.

    RFC 9162, 2.1.4.2:

    1. The old tree is not larger than the new one, and no hash has another length.
    2. An empty old tree, or the same tree, needs no proof and must come with none; roots of equal size must be equal.
    3. Each hash of the proof has a place in both paths or in the new one.
    4. Both paths end at their roots.

    Raises `PeerError("audit-forked")`: these are two histories; `PeerError("audit-broken")` for a proof of wrong shape.
    """
    # 1
    if not 0 <= old <= new <= MAX_SIZE:
        raise PeerError("audit-broken", f"a log of {new} entries cannot follow one of {old}")
    _check_hashes(proof)
    # 2
    if old in (0, new):
        if proof:
            raise PeerError("audit-broken", "there is a consistency proof where none is needed")
        if old == new and old_root != new_root:
            raise PeerError("audit-forked", f"there are two logs of {old} entries with different roots")
        if old == 0 and old_root != EMPTY_ROOT:
            raise PeerError("audit-forked", "the root of no entries is another one")
        return new_root
    # 3
    path = list(proof)
    if old & (old - 1) == 0:
        path.insert(0, old_root)
    if not path:
        raise PeerError("audit-forked", f"there is no proof that the log of {old} entries is the beginning of that of {new}")
    at, last = old - 1, new - 1
    while at & 1:
        at, last = at >> 1, last >> 1
    first = second = path[0]
    for step in path[1:]:
        if last == 0:
            raise PeerError("audit-broken", "the consistency proof has hashes to spare")
        if at & 1 or at == last:
            first, second = hash_children(step, first), hash_children(step, second)
            while not at & 1 and at != 0:
                at, last = at >> 1, last >> 1
        else:
            second = hash_children(second, step)
        at, last = at >> 1, last >> 1
    # 4
    if last != 0 or first != old_root or second != new_root:
        raise PeerError("audit-forked", f"the log of {old} entries is not the beginning of that of {new}")
    return new_root


def _split(width: int) -> int:
    """The largest power of two that is smaller than `width`, which is at least 2."""
    return 1 << ((width - 1).bit_length() - 1)


def _root_of(begin: int, end: int, read: Reader) -> bytes:
    """The root over the leaves [begin, end). `begin` is a multiple of each complete subtree in there."""
    hashes = []
    while begin < end:
        level = (end - begin).bit_length() - 1
        hashes.append(read(level, begin >> level))
        begin += 1 << level
    return fold(hashes)


def _check_hashes(proof: Sequence[bytes]) -> None:
    if len(proof) > MAX_HASHES or any(len(step) != HASH_SIZE for step in proof):
        raise PeerError("audit-broken", "the proof is not a list of SHA-256 hashes")
