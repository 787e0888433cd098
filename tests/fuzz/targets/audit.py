"""Lines and entries of audit exports; whole exports, verified."""

from __future__ import annotations

import contextlib

from enclave_cc.crypto import ed25519
from enclave_cc.errors import PeerError
from enclave_cc.owner.audit.verification import verify_export
from enclave_cc.wire.audit.entry import NO_PREVIOUS, Entry, Subject
from enclave_cc.wire.audit.export import CheckpointLine, End, EntryLine, Header, parse_line
from enclave_cc.wire.tlog.checkpoint import Checkpoint
from enclave_cc.wire.tlog.note import NoteSigner
from enclave_cc.wire.tlog.tree import CompactRange, hash_children

_SIGNER = NoteSigner("log.example/audit", ed25519.SigningKey.generate())
_DOCUMENT = {"decision": "d1", "attestation": "d0", "attester": [{"name": "cpu0", "simulated": True, "root": None}], "number": -7}
_FIRST = Entry(0, 1700000000, "attestation", {"decision": "d0"}, NO_PREVIOUS, bytes(16))
_SECOND = Entry(1, 1700000001, "release", _DOCUMENT, _FIRST.hash(), bytes(16), Subject("acme/key/one", 1))
_TREE = CompactRange()
_TREE.append(_FIRST.hash())
_OLD = Checkpoint(_SIGNER.name, 1, _TREE.root()).sign(_SIGNER).encode()
_TREE.append(_SECOND.hash())
assert _TREE.root() == hash_children(_FIRST.hash(), _SECOND.hash())
_NOTE = Checkpoint(_SIGNER.name, 2, _TREE.root()).sign(_SIGNER).encode()

SEEDS = [
    b"".join(
        line.encode()
        for line in (Header(_SIGNER.name, None, _NOTE), EntryLine(_FIRST), CheckpointLine(_OLD), EntryLine(_SECOND), End(2))
    ),
    b"".join(
        line.encode()
        for line in (
            Header(_SIGNER.name, "acme", _NOTE),
            CheckpointLine(_OLD, (_SECOND.hash(),)),
            EntryLine(_FIRST, (_SECOND.hash(),)),
            EntryLine(_SECOND, (_FIRST.hash(),)),
            End(2),
        )
    ),
    _SECOND.encode(),
]
for _seed in SEEDS[:2]:
    verify_export(_seed.splitlines(keepends=True), [_SIGNER.verifier], [_OLD])


def target(data: bytes) -> None:
    with contextlib.suppress(PeerError):
        assert Entry.parse(data).encode() == data
    for line in data.splitlines():
        with contextlib.suppress(PeerError):
            parsed = parse_line(line)
            assert parse_line(parsed.encode()[:-1]) == parsed
    for kept in ([], [_OLD]):
        with contextlib.suppress(PeerError):
            verify_export(data.splitlines(keepends=True), [_SIGNER.verifier], kept)
