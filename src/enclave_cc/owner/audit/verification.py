"""Verifies exports of an audit log without its KBS: docs/formats/audit.md, "What a verifier checks"."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from enclave_cc.errors import PeerError, foreign
from enclave_cc.owner.audit.kinds import ATTESTATION, DENIAL, RELEASE
from enclave_cc.record import record
from enclave_cc.wire.audit.entry import NO_PREVIOUS, Entry
from enclave_cc.wire.audit.export import CheckpointLine, End, EntryLine, Header, Line, is_at_or_below, parse_line
from enclave_cc.wire.tlog.checkpoint import Checkpoint, verify_checkpoint
from enclave_cc.wire.tlog.note import VerifierKey
from enclave_cc.wire.tlog.proofs import verify_consistency, verify_inclusion
from enclave_cc.wire.tlog.tree import CompactRange, hash_leaf


@record
class Verified:
    """What an export was found to prove. `older`: sizes of the older checkpoints that it continues."""

    checkpoint: Checkpoint
    prefix: str | None
    entries: int
    older: tuple[int, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "origin": self.checkpoint.origin,
            "size": self.checkpoint.size,
            "root": self.checkpoint.root.hex(),
            "prefix": self.prefix,
            "entries": self.entries,
            "older_checkpoints": list(self.older),
        }


def verify_export(lines: Iterable[bytes], keys: Sequence[VerifierKey], kept: Sequence[bytes] = ()) -> Verified:
    """Verifies an export, line by line; needs no more memory than its paths do.

    `kept`: checkpoints (signed notes) that the verifier has from elsewhere.

    1. The first line is a header whose checkpoint is signed by one of `keys` and of the log that it names.
    2. Entries: `_WholeLog` or `_Excerpt`.
    3. Older checkpoints, those in `kept` too, are signed, not larger than the header's, and their trees are the
       beginning of its tree. Without consistency proofs in the file, an excerpt cannot be held against kept ones.
    4. The last line counts the entries; nothing follows it.

    Raises `PeerError`: "malformed", "audit-signature", "audit-broken", "audit-truncated" or "audit-forked".
    """
    # 1
    numbered = _parse_lines(lines)
    header = next(numbered, (0, None))[1]
    if not isinstance(header, Header):
        raise PeerError("malformed", "the file does not begin with the header of an audit export")
    checkpoint = verify_checkpoint(header.checkpoint, keys)
    if checkpoint.origin != header.origin:
        raise PeerError("audit-signature", "the export names another log than its checkpoint does")
    older = sorted((verify_checkpoint(note, keys) for note in kept), key=lambda each: each.size)
    for each in older:
        _check_older(each, checkpoint)
    reader: _WholeLog | _Excerpt = (
        _WholeLog(checkpoint, older) if header.prefix is None else _Excerpt(checkpoint, header.prefix, older)
    )
    count, sizes, end = 0, [], None
    for number, line in numbered:
        match line:
            case _ if end is not None:
                raise PeerError("malformed", f"line {number}: something follows the end of the export")
            # 2
            case EntryLine():
                reader.take_entry(line)
                count += 1
            # 3
            case CheckpointLine():
                found = verify_checkpoint(line.note, keys)
                _check_older(found, checkpoint)
                reader.take_checkpoint(found, line)
                sizes.append(found.size)
            case End():
                end = line
            case _:
                raise PeerError("malformed", f"line {number}: a second header")
    # 4
    if end is None:
        raise PeerError("audit-truncated", f"the export ends after {count} entries without its last line")
    reader.finish()
    if end.entries != count:
        raise PeerError("audit-truncated", f"the export has {count} entries, and its last line says {end.entries}")
    return Verified(checkpoint, header.prefix, count, tuple(sorted({*sizes, *(each.size for each in older)})))


def _parse_lines(lines: Iterable[bytes]) -> Iterator[tuple[int, Line]]:
    for number, line in enumerate(lines, 1):
        if not line.endswith(b"\n"):
            raise PeerError("audit-truncated", f"line {number} of the export is cut off")
        try:
            yield number, parse_line(line[:-1])
        except PeerError as error:
            raise PeerError(error.code, f"line {number}: {error.what}") from error


def _check_older(older: Checkpoint, newest: Checkpoint) -> None:
    """Raises `PeerError` for one that no proof could join with the newest."""
    if older.origin != newest.origin:
        raise PeerError("audit-signature", f"a checkpoint is of another log, {foreign(older.origin)}")
    if older.size > newest.size:
        raise PeerError("audit-truncated", f"the log has {newest.size} entries, and a signed checkpoint says it had {older.size}")
    if older.size == newest.size and older.root != newest.root:
        raise PeerError("audit-forked", f"two signed checkpoints of {older.size} entries have different roots")


class _Numbers:
    """Counts the entries of each path."""

    def __init__(self) -> None:
        self._last: dict[str, int] = {}

    def take(self, entry: Entry) -> None:
        if entry.subject is None:
            return
        path, number = entry.subject.path, entry.subject.number
        expected = self._last.get(path, 0) + 1
        if number > expected:
            raise PeerError("audit-truncated", f"entry {entry.index} is number {number} of {path}: number {expected} is missing")
        if number < expected:
            raise PeerError("audit-broken", f"entry {entry.index} repeats the number {number} of {path}")
        self._last[path] = number


class _WholeLog:
    """Every entry from 0 on.

    1. Indices ascend without a gap, and none lies beyond the checkpoint.
    2. Each entry names the hash of the one before.
    3. Each path's numbers count from 1.
    4. The tree over all entries has the checkpoint's size and root, and had each older checkpoint's root at its size.
    """

    def __init__(self, checkpoint: Checkpoint, older: Sequence[Checkpoint]) -> None:
        self._checkpoint = checkpoint
        self._older = list(older)
        self._tree = CompactRange()
        self._previous = NO_PREVIOUS
        self._numbers = _Numbers()
        self._agreed = 0  # entries that a signed checkpoint vouches for
        self._disputed: Checkpoint | None = None  # the first that these entries do not lead to
        self._compare_older()

    def take_entry(self, line: EntryLine) -> None:
        entry, place = line.entry, self._tree.size
        if line.proof is not None:
            raise PeerError("malformed", "an entry of a whole log has a proof")
        # 1
        if entry.index != place:
            code, how = ("audit-truncated", "is missing") if entry.index > place else ("audit-broken", "is not in its place")
            raise PeerError(code, f"entry {place} {how}: entry {entry.index} stands there")
        if place >= self._checkpoint.size:
            raise PeerError("audit-broken", f"entry {place} lies beyond the checkpoint of {self._checkpoint.size} entries")
        # 2
        if entry.previous != self._previous:
            bad = max(place - 1, 0)
            raise PeerError("audit-broken", f"entry {bad} was changed: entry {place} names another hash for the one before it")
        # 3
        self._numbers.take(entry)
        self._previous = hash_leaf(entry.encode())
        self._tree.append(self._previous)
        # 4
        self._compare_older()

    def take_checkpoint(self, found: Checkpoint, line: CheckpointLine) -> None:
        if line.consistency is not None or found.size != self._tree.size:
            raise PeerError("malformed", f"the checkpoint of {found.size} entries does not stand behind the last of them")
        self._compare(found)

    def finish(self) -> None:
        size = self._checkpoint.size
        if self._tree.size < size:
            raise PeerError("audit-truncated", f"the log ends after {self._tree.size} entries, and its checkpoint says {size}")
        disputed = self._disputed
        self._compare(self._checkpoint)
        if self._disputed is not None and self._disputed is not disputed:
            # The newest checkpoint is signed over other entries than these.
            first = disputed or self._disputed
            place = (
                f"entry {self._agreed}" if first.size == self._agreed + 1 else f"an entry from {self._agreed} to {first.size - 1}"
            )
            raise PeerError("audit-broken", f"{place} was changed: the signed checkpoint of {first.size} entries has another root")
        if disputed is not None:
            what = f"the signed checkpoint of {disputed.size} entries is of another history than that of {size}, signed as well"
            raise PeerError("audit-forked", what)

    def _compare_older(self) -> None:
        while self._older and self._older[0].size == self._tree.size:
            self._compare(self._older.pop(0))

    def _compare(self, checkpoint: Checkpoint) -> None:
        """Tells nothing yet: whether entries were changed or histories forked shows at the end."""
        if checkpoint.root != self._tree.root():
            if self._disputed is None or checkpoint is self._checkpoint:
                self._disputed = checkpoint
        elif self._disputed is None:
            self._agreed = checkpoint.size


class _Excerpt:
    """The entries that concern a prefix.

    1. Each has a proof that leads to the checkpoint's root. Indices ascend, those of attestations left out.
    2. Each concerns the prefix: its subject is the prefix, below or above it, or it is an attestation.
    3. The numbers of each path at or below the prefix count from 1.
    4. The attestation that a release or a denial names stands before it, once, and no other does.
    """

    def __init__(self, checkpoint: Checkpoint, prefix: str, older: Sequence[Checkpoint]) -> None:
        self._checkpoint = checkpoint
        self._prefix = prefix
        self._kept = {(each.size, each.root) for each in older if 0 < each.size < checkpoint.size}
        self._last = -1
        self._numbers = _Numbers()
        self._attested: set[str] = set()
        self._unnamed: dict[str, int] = {}

    def take_entry(self, line: EntryLine) -> None:
        entry = line.entry
        # 1
        if line.proof is None:
            raise PeerError("malformed", f"entry {entry.index} has no proof")
        verify_inclusion(entry.hash(), entry.index, self._checkpoint.size, self._checkpoint.root, line.proof)
        if entry.kind == ATTESTATION:
            self._take_attestation(entry)
            return
        if entry.index <= self._last:
            raise PeerError("audit-broken", f"entry {entry.index} is not in its place: it stands behind entry {self._last}")
        self._last = entry.index
        # 2
        path = None if entry.subject is None else entry.subject.path
        if path is not None and is_at_or_below(path, self._prefix):
            self._numbers.take(entry)  # 3
        elif path is None or not is_at_or_below(self._prefix, path):
            raise PeerError("audit-broken", f"entry {entry.index} does not concern {self._prefix!r}")
        # 4
        decision = entry.document.get("attestation")
        if entry.kind in (RELEASE, DENIAL) and decision is not None:
            if decision not in self._attested:
                raise PeerError("audit-truncated", f"the attestation that entry {entry.index} names is missing")
            self._unnamed.pop(decision, None)

    def _take_attestation(self, entry: Entry) -> None:
        decision = entry.document.get("decision")
        if not isinstance(decision, str) or decision in self._attested:
            raise PeerError("audit-broken", f"entry {entry.index} repeats an attestation")
        self._attested.add(decision)
        self._unnamed[decision] = entry.index

    def take_checkpoint(self, found: Checkpoint, line: CheckpointLine) -> None:
        if line.consistency is None:
            raise PeerError("malformed", f"the checkpoint of {found.size} entries has no consistency proof")
        newest = self._checkpoint
        verify_consistency(found.size, found.root, newest.size, newest.root, line.consistency)
        self._kept.discard((found.size, found.root))

    def finish(self) -> None:
        for index in self._unnamed.values():
            raise PeerError("audit-broken", f"entry {index} is an attestation that nothing in the export names")
        if self._kept:
            size = min(self._kept)[0]
            raise PeerError(
                "audit-truncated",
                f"the export has no proof that it continues the kept checkpoint of {size} entries",
                "Export again with --checkpoint FILE for each checkpoint that you keep.",
            )
