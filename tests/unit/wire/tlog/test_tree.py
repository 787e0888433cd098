"""The vectors of certificate-transparency's Merkle tree tests (8 leaves), and every small tree by RFC 9162's recursion."""

from __future__ import annotations

import hashlib

import pytest

from enclave_cc.errors import PeerError, UsageError
from enclave_cc.wire.tlog import proofs
from enclave_cc.wire.tlog.tree import EMPTY_ROOT, CompactRange, Node, fold, hash_children, hash_leaf

LEAVES = [
    bytes.fromhex(text)
    for text in ("", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f")
]
ROOTS = [
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]
INCLUSION = {
    (0, 1): [],
    (0, 8): [
        "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
    ],
    (5, 8): [
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ],
    (2, 3): ["fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125"],
    (1, 5): [
        "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
    ],
}
CONSISTENCY = {
    (1, 1): [],
    (1, 8): [
        "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
    ],
    (6, 8): [
        "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ],
    (2, 5): [
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
    ],
}


class Tree:
    """All nodes of a tree, as appending completes them."""

    def __init__(self, leaves: list[bytes]) -> None:
        self.range = CompactRange()
        self.nodes: dict[tuple[int, int], bytes] = {}
        self.reads = 0
        for data in leaves:
            leaf = hash_leaf(data)
            self.nodes[0, self.range.size] = leaf
            self.nodes |= {(node.level, node.index): node.hash for node in self.range.append(leaf)}

    def read(self, level: int, index: int) -> bytes:
        self.reads += 1
        return self.nodes[level, index]


def by_recursion(leaves: list[bytes]) -> bytes:
    """RFC 9162, 2.1.1, word for word."""
    match len(leaves):
        case 0:
            return hashlib.sha256(b"").digest()
        case 1:
            return hashlib.sha256(b"\0" + leaves[0]).digest()
        case n:
            k = max(1 << i for i in range(n.bit_length()) if 1 << i < n)
            return hashlib.sha256(b"\1" + by_recursion(leaves[:k]) + by_recursion(leaves[k:])).digest()


def prove_by_recursion(old: int, leaves: list[bytes], *, known: bool = True) -> list[bytes]:
    """RFC 9162, 2.1.4.1, word for word."""
    n = len(leaves)
    if old == n:
        return [] if known else [by_recursion(leaves)]
    k = max(1 << i for i in range(n.bit_length()) if 1 << i < n)
    if old <= k:
        return [*prove_by_recursion(old, leaves[:k], known=known), by_recursion(leaves[k:])]
    return [*prove_by_recursion(old - k, leaves[k:], known=False), by_recursion(leaves[:k])]


@pytest.mark.parametrize("size", range(9))
def test_roots(size: int) -> None:
    tree = Tree(LEAVES[:size])
    assert tree.range.root().hex() == ROOTS[size]
    assert proofs.compute_root(size, Tree(LEAVES).read).hex() == ROOTS[size]


@pytest.mark.parametrize(("index", "size"), INCLUSION)
def test_inclusion_vectors(index: int, size: int) -> None:
    proof = proofs.prove_inclusion(index, size, Tree(LEAVES).read)
    assert [step.hex() for step in proof] == INCLUSION[index, size]
    assert proofs.verify_inclusion(hash_leaf(LEAVES[index]), index, size, bytes.fromhex(ROOTS[size]), proof)


@pytest.mark.parametrize(("old", "new"), CONSISTENCY)
def test_consistency_vectors(old: int, new: int) -> None:
    proof = proofs.prove_consistency(old, new, Tree(LEAVES).read)
    assert [step.hex() for step in proof] == CONSISTENCY[old, new]
    new_root = bytes.fromhex(ROOTS[new])
    assert proofs.verify_consistency(old, bytes.fromhex(ROOTS[old]), new, new_root, proof) == new_root


def test_every_proof_of_every_small_tree_verifies_and_no_other() -> None:
    leaves = [b"entry %d" % i for i in range(40)]
    tree = Tree(leaves)
    roots = [by_recursion(leaves[:size]) for size in range(len(leaves) + 1)]
    for size in range(len(leaves) + 1):
        assert proofs.compute_root(size, tree.read) == roots[size]
        for index in range(size):
            proof = proofs.prove_inclusion(index, size, tree.read)
            proofs.verify_inclusion(tree.nodes[0, index], index, size, roots[size], proof)
            for wrong in (index ^ 1, index + 1):
                with pytest.raises(PeerError, match="audit-broken"):
                    proofs.verify_inclusion(tree.nodes[0, index], wrong, size, roots[size], proof)
            for broken in ([*proof, EMPTY_ROOT], proof[:-1], [EMPTY_ROOT, *proof[1:]]):
                if broken != proof:
                    with pytest.raises(PeerError, match="audit-broken"):
                        proofs.verify_inclusion(tree.nodes[0, index], index, size, roots[size], broken)
        for old in range(size + 1):
            proof = proofs.prove_consistency(old, size, tree.read)
            assert old == 0 or proof == prove_by_recursion(old, leaves[:size])
            proofs.verify_consistency(old, roots[old], size, roots[size], proof)
            for broken in ([*proof, EMPTY_ROOT], proof[:-1], [EMPTY_ROOT, *proof[1:]]):
                if broken != proof:
                    with pytest.raises(PeerError, match="audit-"):
                        proofs.verify_consistency(old, roots[old], size, roots[size], broken)
            with pytest.raises(PeerError, match="audit-forked"):
                proofs.verify_consistency(old, hash_leaf(b"another"), size, roots[size], proof)


def test_two_roots_of_one_size_are_a_fork() -> None:
    with pytest.raises(PeerError, match="two logs of 3 entries"):
        proofs.verify_consistency(3, bytes(32), 3, bytes([1]) * 32, [])


def test_proofs_read_few_nodes() -> None:
    tree = Tree([b"%d" % i for i in range(5000)])
    for size in (4096, 4999, 5000):
        tree.reads = 0
        proof = proofs.prove_inclusion(1234, size, tree.read)
        assert len(proof) <= 13
        assert tree.reads <= 2 * 13
        tree.reads = 0
        proofs.prove_consistency(1234, size, tree.read)
        assert tree.reads <= 2 * 13


def test_a_compact_range_survives_storage() -> None:
    tree = Tree(LEAVES[:7])
    again = CompactRange.decode(7, tree.range.encode())
    assert again.append(hash_leaf(LEAVES[7])) == tree.range.append(hash_leaf(LEAVES[7]))
    assert again.root() == tree.range.root() == bytes.fromhex(ROOTS[8])
    for size, data in ((6, bytes(96)), (7, bytes(95)), (-1, b""), (1 << 63, bytes(32))):
        with pytest.raises(PeerError, match="malformed"):
            CompactRange.decode(size, data)


def test_append_tells_what_became_complete() -> None:
    a, b = hash_leaf(b"a"), hash_leaf(b"b")
    tree = CompactRange()
    assert tree.append(a) == []
    assert tree.append(b) == [Node(1, 0, hash_children(a, b))]
    assert fold([]) == CompactRange().root() == EMPTY_ROOT


@pytest.mark.parametrize(("index", "size"), [(0, 0), (3, 3), (-1, 3)])
def test_no_proof_of_what_is_not_there(index: int, size: int) -> None:
    with pytest.raises(UsageError):
        proofs.prove_inclusion(index, size, Tree(LEAVES).read)
    with pytest.raises(PeerError):
        proofs.verify_inclusion(bytes(32), index, size, bytes(32), [])


def test_no_proof_of_a_tree_that_shrinks() -> None:
    with pytest.raises(UsageError):
        proofs.prove_consistency(4, 3, Tree(LEAVES).read)
    with pytest.raises(PeerError, match="cannot follow"):
        proofs.verify_consistency(4, bytes(32), 3, bytes(32), [])


def test_hashes_of_another_length_are_refused() -> None:
    for proof in ([bytes(31)], [bytes(32)] * 64):
        with pytest.raises(PeerError, match="not a list"):
            proofs.verify_inclusion(bytes(32), 0, 2, bytes(32), proof)
        with pytest.raises(PeerError, match="not a list"):
            proofs.verify_consistency(1, bytes(32), 2, bytes(32), proof)
