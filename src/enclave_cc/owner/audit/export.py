"""Exports: from a source of lines, the KBS's own database or its HTTP interface, to the text of an export."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from enclave_cc.errors import PeerError, UsageError
from enclave_cc.owner.audit.kinds import ATTESTATION
from enclave_cc.owner.audit.nodes import NodeReader
from enclave_cc.owner.storage.database import Connection, Database
from enclave_cc.wire.audit.entry import Entry, is_subject
from enclave_cc.wire.audit.export import CheckpointLine, End, EntryLine, Header, Line
from enclave_cc.wire.tlog.checkpoint import Checkpoint
from enclave_cc.wire.tlog.note import Note
from enclave_cc.wire.tlog.proofs import prove_consistency, prove_inclusion

PAGE = 500
PAGE_BYTES = 1024 * 1024  # of entries; their proofs are about as much


class LogSource(Protocol):
    """Where an export comes from. Sizes are those of checkpoints that the source gave."""

    def read_log(self, size: int, begin: int) -> list[Line]:
        """Entries from `begin` on, at most `PAGE`, below `size`, each followed by the checkpoints that end with it."""
        ...

    def read_excerpt(self, prefix: str, size: int, after: int) -> list[EntryLine]:
        """At most `PAGE` entries above index `after`, below `size`, that concern the prefix; before each, the attestation
        that it names. With proofs in the tree of `size`; empty at the end."""
        ...

    def read_entry(self, index: int, size: int) -> EntryLine:
        """One entry with its proof. Raises `UsageError("not-found")`."""
        ...

    def prove_consistency(self, old: int, new: int) -> tuple[bytes, ...]: ...


class DatabaseSource:
    """A `LogSource` on the KBS's own database. Safe for many threads."""

    def __init__(self, database: Database, nodes: NodeReader | None = None) -> None:
        self._database = database
        self._nodes = NodeReader(database) if nodes is None else nodes

    def read_log(self, size: int, begin: int) -> list[Line]:
        end = min(size, begin + PAGE)
        with self._database.read() as db:
            sql = "SELECT entry FROM audit_entry WHERE leaf_index >= ? AND leaf_index < ? ORDER BY leaf_index"
            entries = _cut_page(db.execute(sql, (begin, end)).fetchall(), 0)
            sql = "SELECT size, note FROM audit_checkpoint WHERE size > ? AND size <= ? ORDER BY size, at"
            notes = db.execute(sql, (begin, begin + len(entries))).fetchall()
        lines: list[Line] = []
        for place, (data,) in enumerate(entries, begin + 1):
            lines.append(EntryLine(_parse(place - 1, data)))
            while notes and notes[0][0] <= place:
                lines.append(CheckpointLine(bytes(notes.pop(0)[1])))
        return lines

    def read_excerpt(self, prefix: str, size: int, after: int) -> list[EntryLine]:
        with self._database.read() as db:
            rows = _find_concerned(db, prefix, size, after)
            ids = sorted({row[2] for row in rows if row[2] is not None})
            attestations = dict(_find_attestation(db, each, size) for each in ids)
        lines = []
        for index, data, attestation in rows:
            found = None if attestation is None else attestations.pop(attestation, None)
            if found is not None:
                lines.append(self._prove(*found, size))
            lines.append(self._prove(index, data, size))
        return lines

    def read_entry(self, index: int, size: int) -> EntryLine:
        with self._database.read() as db:
            row = db.execute("SELECT entry FROM audit_entry WHERE leaf_index = ? AND ? > leaf_index", (index, size)).fetchone()
        if row is None:
            raise UsageError("not-found", f"there is no entry {index} in a log of {size}")
        return self._prove(index, row[0], size)

    def prove_consistency(self, old: int, new: int) -> tuple[bytes, ...]:
        return tuple(prove_consistency(old, new, self._nodes.read))

    def read_newest_checkpoint(self) -> bytes | None:
        """The one that was signed last, without signing anew."""
        with self._database.read() as db:
            row = db.execute("SELECT note FROM audit_checkpoint ORDER BY size DESC, at DESC LIMIT 1").fetchone()
        return None if row is None else bytes(row[0])

    def _prove(self, index: int, data: bytes, size: int) -> EntryLine:
        return EntryLine(_parse(index, data), tuple(prove_inclusion(index, size, self._nodes.read)))


def compose_export(
    source: LogSource, checkpoint: bytes, *, prefix: str | None = None, kept: Sequence[bytes] = ()
) -> Iterator[bytes]:
    """The lines of an export under a signed checkpoint. `kept`: checkpoints that it shall prove to continue.

    Raises `UsageError("usage")` for a prefix that no resource has, or a kept checkpoint of a larger or another log;
    `PeerError("malformed")` for one that is none."""
    newest = Checkpoint.parse(Note.parse(checkpoint).text)
    older = [(note, Checkpoint.parse(Note.parse(note).text)) for note in kept]
    if prefix is not None and not is_subject(prefix):
        raise UsageError("usage", "the prefix is not the beginning of a resource path", "Write it as REPOSITORY[/TYPE[/TAG]].")
    yield Header(newest.origin, prefix, checkpoint).encode()
    if prefix is None:
        count = 0
        while count < newest.size:
            lines = source.read_log(newest.size, count)
            entries = sum(isinstance(line, EntryLine) for line in lines)
            yield from (line.encode() for line in lines)
            if entries == 0:
                break  # the verifier finds them missing
            count += entries
    else:
        for note, each in older:
            if each.origin != newest.origin or each.size > newest.size:
                raise UsageError("usage", f"the log of {newest.size} entries does not continue the checkpoint of {each.size}")
            yield CheckpointLine(note, source.prove_consistency(each.size, newest.size)).encode()
        count = 0
        for line in _read_whole_excerpt(source, prefix, newest.size):
            yield line.encode()
            count += 1
    yield End(count).encode()


def _read_whole_excerpt(source: LogSource, prefix: str, size: int) -> Iterator[EntryLine]:
    """Page by page; an attestation that two pages name comes once."""
    attested, after = set(), -1
    while lines := source.read_excerpt(prefix, size, after):
        for line in lines:
            if line.entry.kind == ATTESTATION:
                if line.entry.index not in attested:
                    attested.add(line.entry.index)
                    yield line
            else:
                after = line.entry.index
                yield line


def _parse(index: int, data: bytes) -> Entry:
    try:
        return Entry.parse(bytes(data))
    except PeerError as error:
        raise PeerError("audit-broken", f"entry {index} was changed: {error.what}") from error


def _find_concerned(db: Connection, prefix: str, size: int, after: int) -> list[tuple[int, bytes, str | None]]:
    """(index, entry, attestation) by index: subjects at, below and above the prefix."""
    # One search of the index (subject, leaf_index) for each: with OR, both databases read the log from end to end, and
    # without the plus, SQLite does for what lies below the prefix.
    parts = prefix.split("/")
    searches: list[tuple[str, tuple[object, ...]]] = [
        ("subject = ? AND leaf_index > ? AND leaf_index < ?", ("/".join(parts[:n]), after, size)) for n in range(len(parts) + 1)
    ]
    below = "subject > ? AND subject < ? AND +leaf_index > ? AND +leaf_index < ?"  # "0" follows "/"
    searches.append((below, (prefix + "/", prefix + "0", after, size)))
    if not prefix:
        searches = [("subject IS NOT NULL AND leaf_index > ? AND leaf_index < ?", (after, size))]
    found = " UNION ALL ".join(f"SELECT leaf_index FROM audit_entry WHERE {condition}" for condition, _ in searches)  # noqa: S608
    rows = db.execute(
        f"SELECT e.leaf_index, e.entry, e.attestation FROM ({found} ORDER BY leaf_index LIMIT ?) f"  # noqa: S608
        " JOIN audit_entry e ON e.leaf_index = f.leaf_index ORDER BY e.leaf_index",
        (*(value for _, values in searches for value in values), PAGE),
    ).fetchall()
    return [(index, bytes(entry), attestation) for index, entry, attestation in _cut_page(rows, 1)]


def _cut_page(rows: list[Any], column: int) -> list[Any]:
    """As many rows as fit in an answer, by the size of a column; at least one."""
    total = 0
    for count, row in enumerate(rows):
        total += len(row[column])
        if count and total > PAGE_BYTES:
            return rows[:count]
    return rows


def _find_attestation(db: Connection, decision: str, size: int) -> tuple[str, tuple[int, bytes] | None]:
    row = db.execute("SELECT leaf_index, entry FROM audit_entry WHERE decision = ? AND leaf_index < ?", (decision, size)).fetchone()
    return decision, None if row is None else (row[0], bytes(row[1]))
