"""A proof of one entry that stands alone: C2SP tlog-proof, version 1.

c2sp.org/tlog-proof@v1
extra BASE64                 (optional)
index N
BASE64 of each hash of the inclusion proof
(empty line)
the signed checkpoint
"""

from __future__ import annotations

import base64
from collections.abc import Sequence

from enclave_cc.errors import PeerError
from enclave_cc.record import record
from enclave_cc.wire.tlog.checkpoint import Checkpoint, parse_number, verify_checkpoint
from enclave_cc.wire.tlog.note import MAX_NOTE, VerifierKey, decode_base64
from enclave_cc.wire.tlog.proofs import MAX_HASHES, verify_inclusion
from enclave_cc.wire.tlog.tree import HASH_SIZE, hash_leaf

FIRST_LINE = "c2sp.org/tlog-proof@v1"
# An entry with the reasons of a denial is a few kB.
MAX_PROOF = 4 * 1024 * 1024


@record
class EntryProof:
    """`extra` is the application's, and unauthenticated; here it holds the entry itself. `checkpoint`: a signed note."""

    index: int
    hashes: tuple[bytes, ...]
    checkpoint: bytes
    extra: bytes | None = None

    @classmethod
    def parse(cls, data: bytes) -> EntryProof:
        """Raises `PeerError("malformed")`."""
        if len(data) > MAX_PROOF:
            raise PeerError("malformed", f"the proof is longer than {MAX_PROOF} bytes")
        head, separator, checkpoint = data.partition(b"\n\n")
        if not separator or len(checkpoint) > MAX_NOTE:
            raise PeerError("malformed", "the proof has no checkpoint below an empty line")
        try:
            first, *lines = head.decode("ascii").split("\n")
        except UnicodeDecodeError as error:
            raise PeerError("malformed", "the proof is not ASCII above its checkpoint") from error
        if first != FIRST_LINE:
            raise PeerError("malformed", f"the proof does not begin with {FIRST_LINE}")
        extra = decode_base64(lines.pop(0)[6:], "the proof's extra data") if lines and lines[0].startswith("extra ") else None
        if not lines or not lines[0].startswith("index ") or len(lines) > 1 + MAX_HASHES:
            raise PeerError("malformed", "the proof names no index, or has too many hashes")
        index = parse_number(lines[0][6:], "the proof's index")
        hashes = tuple(decode_base64(line, "a hash of the proof") for line in lines[1:])
        if any(len(step) != HASH_SIZE for step in hashes):
            raise PeerError("malformed", "a hash of the proof is no SHA-256")
        return cls(index, hashes, checkpoint, extra)

    def encode(self) -> bytes:
        lines = [FIRST_LINE]
        if self.extra is not None:
            lines.append("extra " + base64.b64encode(self.extra).decode())
        lines.append(f"index {self.index}")
        lines += [base64.b64encode(step).decode() for step in self.hashes]
        return "\n".join(lines).encode() + b"\n\n" + self.checkpoint


def verify_entry(proof: EntryProof, entry: bytes, keys: Sequence[VerifierKey]) -> Checkpoint:
    """The checkpoint under which `entry` (the leaf's bytes) is in the log.

    1. The checkpoint is signed by one of `keys`.
    2. The proof leads from the entry's hash to the checkpoint's root.

    Raises `PeerError`: "malformed" or "audit-signature" (1), "audit-broken" (2).
    """
    # 1
    checkpoint = verify_checkpoint(proof.checkpoint, keys)
    # 2
    verify_inclusion(hash_leaf(entry), proof.index, checkpoint.size, checkpoint.root, proof.hashes)
    return checkpoint
