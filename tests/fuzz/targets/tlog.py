"""Signed notes, checkpoints, verifier keys, proofs as text; and the proofs inside, verified."""

from __future__ import annotations

import contextlib

from enclave_cc.crypto import ed25519
from enclave_cc.errors import PeerError
from enclave_cc.wire.tlog import proofs
from enclave_cc.wire.tlog.checkpoint import Checkpoint, verify_checkpoint
from enclave_cc.wire.tlog.note import Note, NoteSigner, VerifierKey
from enclave_cc.wire.tlog.proof_text import EntryProof, verify_entry
from enclave_cc.wire.tlog.tree import CompactRange, hash_leaf

_SIGNER = NoteSigner("log.example/audit", ed25519.SigningKey.generate())
_TREE = CompactRange()
_NODES = {}
for _i in range(6):
    _NODES[0, _i] = hash_leaf(b"%d" % _i)
    _NODES |= {(node.level, node.index): node.hash for node in _TREE.append(_NODES[0, _i])}
_CHECKPOINT = Checkpoint(_SIGNER.name, 6, _TREE.root()).sign(_SIGNER).encode()
_HASHES = tuple(proofs.prove_inclusion(3, 6, lambda level, index: _NODES[level, index]))

SEEDS = [
    _CHECKPOINT,
    str(_SIGNER.verifier).encode(),
    EntryProof(3, _HASHES, _CHECKPOINT, b"3").encode(),
    Checkpoint(_SIGNER.name, 6, _TREE.root(), ("more",)).encode().encode(),
]


def target(data: bytes) -> None:
    text = data.decode("utf-8", "replace")
    for parse in (
        lambda: Note.parse(data).encode() == data,
        lambda: Checkpoint.parse(text).encode() == text,
        lambda: str(VerifierKey.parse(text)) == text,
        lambda: EntryProof.parse(data).encode() == data,
    ):
        try:
            if not parse():  # one meaning, one form
                raise AssertionError("a second form of the same value was accepted")
        except PeerError:
            pass
    with contextlib.suppress(PeerError):
        verify_checkpoint(data, [_SIGNER.verifier])
    try:
        proof = EntryProof.parse(data)
        verify_entry(proof, proof.extra or b"", [_SIGNER.verifier])
    except PeerError:
        pass
