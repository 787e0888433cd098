"""Exports of the audit log, line by line."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from typing import Any

from enclave_cc.errors import PeerError
from enclave_cc.record import record
from enclave_cc.wire.audit.entry import MAX_ENTRY, Entry, is_subject
from enclave_cc.wire.rcar import canonical
from enclave_cc.wire.tlog.note import MAX_NOTE, decode_base64, is_name
from enclave_cc.wire.tlog.proofs import MAX_HASHES
from enclave_cc.wire.tlog.tree import HASH_SIZE, MAX_SIZE

FORMAT = "enclave-cc/audit-export/1"
MAX_LINE = 1024 * 1024


@record
class Header:
    """The first line. `prefix` is None for a whole log; `checkpoint` is a signed note, unverified."""

    origin: str
    prefix: str | None
    checkpoint: bytes

    def encode(self) -> bytes:
        members = {"format": FORMAT, "origin": self.origin, "prefix": self.prefix, "checkpoint": self.checkpoint.decode()}
        return _encode_line(members)


@record
class EntryLine:
    """An entry; `proof` is None in a whole log."""

    entry: Entry
    proof: tuple[bytes, ...] | None = None

    def encode(self) -> bytes:
        return _encode_line({"entry": self.entry.to_json(), **_encode_proof("proof", self.proof)})


@record
class CheckpointLine:
    """An older checkpoint, a signed note, unverified; `consistency` is None in a whole log."""

    note: bytes
    consistency: tuple[bytes, ...] | None = None

    def encode(self) -> bytes:
        return _encode_line({"note": self.note.decode(), **_encode_proof("consistency", self.consistency)})


@record
class End:
    """The last line."""

    entries: int

    def encode(self) -> bytes:
        return _encode_line({"entries": self.entries})


Line = Header | EntryLine | CheckpointLine | End


def parse_line(data: bytes) -> Line:
    """One line, without its newline. Raises `PeerError("malformed")`."""
    if len(data) > MAX_LINE:
        raise PeerError("malformed", f"the line is longer than {MAX_LINE} bytes")
    value = canonical.parse_object(data, "the line")
    match sorted(value):
        case ["checkpoint", "format", "origin", "prefix"]:
            return _parse_header(value)
        case ["entry"]:
            return EntryLine(Entry.from_json(value["entry"]))
        case ["entry", "proof"]:
            return EntryLine(Entry.from_json(value["entry"]), parse_hashes(value["proof"]))
        case ["note"]:
            return CheckpointLine(_take_note(value, "note"))
        case ["consistency", "note"]:
            return CheckpointLine(_take_note(value, "note"), parse_hashes(value["consistency"]))
        case ["entries"]:
            count = value["entries"]
            if type(count) is int and 0 <= count <= MAX_SIZE:
                return End(count)
    raise PeerError("malformed", "the line is none of an audit export")


def parse_hashes(value: object) -> tuple[bytes, ...]:
    """A proof: a list of SHA-256 hashes in base64. Raises `PeerError("malformed")`."""
    if not isinstance(value, list) or len(value) > MAX_HASHES or not all(isinstance(step, str) for step in value):
        raise PeerError("malformed", "the proof is not a list of hashes")
    hashes = tuple(decode_base64(step, "a hash of the proof") for step in value)
    if any(len(step) != HASH_SIZE for step in hashes):
        raise PeerError("malformed", "a hash of the proof is no SHA-256")
    return hashes


def encode_hashes(hashes: Sequence[bytes]) -> list[str]:
    return [base64.b64encode(step).decode() for step in hashes]


def is_at_or_below(path: str, prefix: str) -> bool:
    """Whether a path is `prefix` or lies below it, by whole segments. Everything lies below the empty prefix."""
    return prefix in ("", path) or path.startswith(prefix + "/")


def _parse_header(value: Mapping[str, Any]) -> Header:
    if value["format"] != FORMAT:
        raise PeerError("malformed", f"the file is not of the format {FORMAT}")
    origin, prefix = value["origin"], value["prefix"]
    if not isinstance(origin, str) or not is_name(origin):
        raise PeerError("malformed", "the export names no log")
    if prefix is not None and not (isinstance(prefix, str) and is_subject(prefix)):
        raise PeerError("malformed", "the export's prefix is not the beginning of a resource path")
    return Header(origin, prefix, _take_note(value, "checkpoint"))


def _take_note(value: Mapping[str, Any], name: str) -> bytes:
    note = canonical.take_text(value, name, "the line").encode()
    if len(note) > MAX_NOTE:
        raise PeerError("malformed", "the checkpoint is too long")
    return note


def _encode_proof(name: str, hashes: Sequence[bytes] | None) -> dict[str, list[str]]:
    return {} if hashes is None else {name: encode_hashes(hashes)}


def _encode_line(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode() + b"\n"


assert MAX_ENTRY + MAX_HASHES * 48 < MAX_LINE  # noqa: S101 (an entry with its proof fits in a line)
