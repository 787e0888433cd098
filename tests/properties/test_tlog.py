"""The Merkle tree against pymerkle, an implementation of others; notes, checkpoints and proofs of any text and bytes."""

from __future__ import annotations

import contextlib

import pymerkle
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from enclave_cc.crypto import ed25519
from enclave_cc.errors import PeerError
from enclave_cc.wire.tlog import proofs
from enclave_cc.wire.tlog.checkpoint import Checkpoint, verify_checkpoint
from enclave_cc.wire.tlog.note import Note, NoteSigner, VerifierKey
from enclave_cc.wire.tlog.proof_text import EntryProof
from enclave_cc.wire.tlog.tree import CompactRange, hash_leaf

SIZE = 700
SIGNER = NoteSigner("log.example", ed25519.SigningKey.generate())
PARSERS = (
    Note.parse,
    EntryProof.parse,
    lambda data: Checkpoint.parse(data.decode()),
    lambda data: VerifierKey.parse(data.decode()),
)


class Trees:
    """Theirs, all nodes of ours, and our roots by size."""

    def __init__(self) -> None:
        self.theirs, ours = pymerkle.InmemoryTree("sha256"), CompactRange()
        self.nodes: dict[tuple[int, int], bytes] = {}
        self.roots = [ours.root()]
        for i in range(SIZE):
            data = b"%d" % i * (i % 7)
            self.theirs.append_entry(data)
            self.nodes[0, i] = hash_leaf(data)
            self.nodes |= {(node.level, node.index): node.hash for node in ours.append(self.nodes[0, i])}
            self.roots.append(ours.root())

    def read(self, level: int, index: int) -> bytes:
        return self.nodes[level, index]


@pytest.fixture(scope="module")
def trees() -> Trees:
    return Trees()


@given(size=st.integers(1, SIZE))
def test_roots_are_theirs(trees: Trees, size: int) -> None:
    assert trees.roots[size] == trees.theirs.get_root(size) == proofs.compute_root(size, trees.read)


@given(size=st.integers(1, SIZE), index=st.integers(0, SIZE - 1))
def test_inclusion_proofs_are_theirs(trees: Trees, size: int, index: int) -> None:
    assume(index < size)
    leaf, proof = trees.nodes[0, index], proofs.prove_inclusion(index, size, trees.read)
    assert [leaf, *proof] == list(trees.theirs.prove_inclusion(index + 1, size).path)  # theirs count from 1
    proofs.verify_inclusion(leaf, index, size, trees.roots[size], proof)


@given(old=st.integers(1, SIZE), new=st.integers(1, SIZE))
def test_consistency_proofs_join_their_roots(trees: Trees, old: int, new: int) -> None:
    """pymerkle proves consistency in a form of its own, so that only the roots can be compared."""
    assume(old <= new)
    proof = proofs.prove_consistency(old, new, trees.read)
    proofs.verify_consistency(old, trees.theirs.get_root(old), new, trees.theirs.get_root(new), proof)


@given(size=st.integers(1, 1 << 62), at=st.integers(0, 1 << 62), proof=st.lists(st.binary(min_size=32, max_size=32), max_size=70))
def test_invented_proofs_are_refused(size: int, at: int, proof: list[bytes]) -> None:
    with pytest.raises(PeerError):
        proofs.verify_inclusion(bytes(32), at, size, bytes(31) + b"\1", proof)
    with pytest.raises(PeerError):
        proofs.verify_consistency(at, bytes(32), size, bytes(31) + b"\1", proof)


@given(text=st.text(min_size=1, max_size=200), extensions=st.lists(st.text(min_size=1, max_size=30), max_size=3))
def test_any_text_that_can_be_signed_reads_back(text: str, extensions: list[str]) -> None:
    assume(all(c >= " " and not "\ud800" <= c <= "\udfff" for line in (text, *extensions) for c in line))
    checkpoint = Checkpoint(SIGNER.name, len(text), bytes(32), tuple(extensions))
    assert verify_checkpoint(checkpoint.sign(SIGNER).encode(), [SIGNER.verifier]) == checkpoint
    note = SIGNER.sign(f"{text}\n\n{text}\n")
    assert Note.parse(note.encode()) == note
    assert note.verify([SIGNER.verifier]) == SIGNER.verifier


@given(data=st.binary(max_size=300) | st.text(max_size=200).map(lambda text: text.encode("utf-8", "replace")))
def test_parsers_raise_peer_errors_only(data: bytes) -> None:
    for parse in PARSERS:
        with contextlib.suppress(PeerError, UnicodeDecodeError):
            parse(data)


@given(data=st.data())
def test_a_changed_note_is_refused_or_means_the_same(data: st.DataObject) -> None:
    checkpoint = Checkpoint(SIGNER.name, 3, bytes(32))
    raw = bytearray(checkpoint.sign(SIGNER).encode())
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(PeerError):
        verify_checkpoint(bytes(raw), [SIGNER.verifier])
