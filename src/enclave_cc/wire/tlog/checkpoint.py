"""Checkpoints, signed tree heads: C2SP tlog-checkpoint."""

from __future__ import annotations

import base64
from collections.abc import Sequence

from enclave_cc.errors import PeerError
from enclave_cc.record import record
from enclave_cc.wire.tlog.note import MAX_NAME, Note, NoteSigner, VerifierKey, decode_base64
from enclave_cc.wire.tlog.tree import HASH_SIZE, MAX_SIZE


@record
class Checkpoint:
    """What a log says of itself: the root of its first `size` entries. `extensions`: further lines, without meaning here."""

    origin: str
    size: int
    root: bytes
    extensions: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Checkpoint:
        """The text of a note. Raises `PeerError("malformed")`."""
        lines = text.split("\n")
        if len(lines) < 4 or lines.pop() != "" or not all(lines):
            raise PeerError("malformed", "the checkpoint is not three lines or more, none empty")
        origin, size, root, *extensions = lines
        if len(origin) > MAX_NAME:
            raise PeerError("malformed", "the checkpoint's origin is too long")
        parsed = cls(
            origin, parse_number(size, "the checkpoint's size"), decode_base64(root, "the checkpoint's root"), tuple(extensions)
        )
        if len(parsed.root) != HASH_SIZE:
            raise PeerError("malformed", "the checkpoint's root is not a SHA-256 hash")
        return parsed

    def encode(self) -> str:
        """The text to sign."""
        return "\n".join((self.origin, str(self.size), base64.b64encode(self.root).decode(), *self.extensions, ""))

    def sign(self, signer: NoteSigner) -> Note:
        return signer.sign(self.encode())


def verify_checkpoint(data: bytes, keys: Sequence[VerifierKey]) -> Checkpoint:
    """The checkpoint in a signed note.

    1. It is a note.
    2. It bears the signature of one of `keys`.
    3. Its text is a checkpoint, and its origin is that key's name.

    Raises `PeerError`: "malformed" (1, 3), "audit-signature" (2, 3).
    """
    # 1
    note = Note.parse(data)
    # 2
    key = note.verify(keys)
    # 3
    checkpoint = Checkpoint.parse(note.text)
    if checkpoint.origin != key.name:
        raise PeerError("audit-signature", "the checkpoint is of another log than the key that signed it")
    return checkpoint


def parse_number(text: str, what: str) -> int:
    """A decimal number below `MAX_SIZE` without leading zeros. Raises `PeerError("malformed")`."""
    if not text.isascii() or not text.isdecimal() or len(text) > 19 or (text[0] == "0" and text != "0") or int(text) > MAX_SIZE:
        raise PeerError("malformed", f"{what} is not a number in plain decimal")
    return int(text)
