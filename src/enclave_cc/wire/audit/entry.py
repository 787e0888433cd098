"""An entry of the audit log: canonical JSON, the leaf of the Merkle tree."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from enclave_cc.errors import PeerError, UsageError
from enclave_cc.record import record
from enclave_cc.wire.rcar import canonical
from enclave_cc.wire.tlog.tree import HASH_SIZE, MAX_SIZE, hash_leaf

VERSION = 1
SALT_SIZE = 16
NO_PREVIOUS = bytes(HASH_SIZE)
MAX_ENTRY = 512 * 1024
_KIND = re.compile(r"[a-z][a-z0-9-]{0,63}\Z")
# Resource paths, and what is above them: segments of one to three, or nothing at all.
_PATH = re.compile(r"(?:[A-Za-z0-9_.-]{1,256}(?:/[A-Za-z0-9_.-]{1,256}){0,2})?\Z")
_MEMBERS = {"version", "index", "at", "kind", "document", "previous", "salt", "subject"}
_EXACT = 1 << 53  # integers that every JSON reader reads alike


@record
class Subject:
    """The path that an entry is about, and the how-manieth entry about it this is, from 1."""

    path: str
    number: int


@record
class Entry:
    """One entry. `previous`: leaf hash of the one before; `salt`: 16 random bytes."""

    index: int
    at: int  # Unix seconds
    kind: str
    document: Mapping[str, Any]
    previous: bytes
    salt: bytes
    subject: Subject | None = None

    @classmethod
    def from_json(cls, value: object) -> Entry:
        """Raises `PeerError("malformed")` for anything that is not an entry of version 1."""
        if (
            not isinstance(value, dict)
            or set(value) != _MEMBERS
            or value["version"] != VERSION
            or type(value["version"]) is not int
        ):
            raise PeerError("malformed", f"the entry is not one of version {VERSION}")
        kind, document = value["kind"], value["document"]
        if not isinstance(kind, str) or not is_kind(kind) or not isinstance(document, dict):
            raise PeerError("malformed", "the entry has no kind or no document")
        try:
            encode_document(document)
        except UsageError as error:
            raise PeerError("malformed", error.what) from error
        return cls(
            index=_take_number(value["index"], "index"),
            at=_take_number(value["at"], "time"),
            kind=kind,
            document=document,
            previous=_take_hex(value["previous"], HASH_SIZE, "previous hash"),
            salt=_take_hex(value["salt"], SALT_SIZE, "salt"),
            subject=_take_subject(value["subject"]),
        )

    @classmethod
    def parse(cls, data: bytes) -> Entry:
        """Of a leaf's bytes, which must be in canonical form. Raises `PeerError("malformed")`."""
        if len(data) > MAX_ENTRY:
            raise PeerError("malformed", f"the entry is longer than {MAX_ENTRY} bytes")
        entry = cls.from_json(canonical.parse_object(data, "the entry"))
        if entry.encode() != data:
            raise PeerError("malformed", "the entry is not in canonical form")
        return entry

    def to_json(self) -> dict[str, Any]:
        subject = None if self.subject is None else {"number": self.subject.number, "path": self.subject.path}
        return {
            "at": self.at,
            "document": dict(self.document),
            "index": self.index,
            "kind": self.kind,
            "previous": self.previous.hex(),
            "salt": self.salt.hex(),
            "subject": subject,
            "version": VERSION,
        }

    def encode(self) -> bytes:
        """The leaf's bytes."""
        return canonical.encode(self.to_json())

    def hash(self) -> bytes:
        return hash_leaf(self.encode())


def encode_entry(
    document: bytes, *, index: int, at: int, kind: str, previous: bytes, salt: bytes, subject: Subject | None
) -> bytes:
    """As `Entry.encode`, around a document that `encode_document` made already: members in canonical order."""
    about = "null" if subject is None else f'{{"number":{subject.number},"path":"{subject.path}"}}'
    hashes = f'"previous":"{previous.hex()}","salt":"{salt.hex()}"'
    tail = f'"index":{index},"kind":"{kind}",{hashes},"subject":{about},"version":{VERSION}}}'
    return b'{"at":%d,"document":%b,%b' % (at, document, tail.encode())


def encode_document(document: Mapping[str, Any]) -> bytes:
    """Canonical JSON. Raises `UsageError("usage")` for what two readers could read differently, or for too much."""
    _check_value(document, canonical.MAX_DEPTH - 2)
    try:
        data = canonical.encode(document)
    except (ValueError, UnicodeEncodeError) as error:
        raise UsageError("usage", "an audit entry holds text that is not Unicode") from error
    if len(data) > MAX_ENTRY - 4096:
        raise UsageError("usage", "an audit entry is too long")
    return data


def is_kind(text: str) -> bool:
    return _KIND.match(text) is not None


def is_subject(text: str) -> bool:
    return _PATH.match(text) is not None


def _check_value(value: object, depth: int) -> None:
    if depth == 0:
        raise UsageError("usage", "an audit entry nests too deep")
    if isinstance(value, str):  # first, being what most of it is
        return
    if isinstance(value, dict | Mapping):
        for name, member in value.items():
            if not isinstance(name, str) or not name.isascii():
                raise UsageError("usage", "an audit entry has a member whose name is not ASCII text")
            _check_value(member, depth - 1)
    elif isinstance(value, list | tuple):
        for member in value:
            _check_value(member, depth - 1)
    elif not (value is None or isinstance(value, bool) or (type(value) is int and -_EXACT < value < _EXACT)):
        raise UsageError("usage", f"an audit entry holds a {type(value).__name__}, or a number of more than 53 bits")


def _take_number(value: object, what: str) -> int:
    if type(value) is not int or not 0 <= value < min(_EXACT, MAX_SIZE):
        raise PeerError("malformed", f"the entry's {what} is not a number")
    return value


def _take_hex(value: object, size: int, what: str) -> bytes:
    if not isinstance(value, str) or re.fullmatch(rf"[0-9a-f]{{{2 * size}}}", value) is None:
        raise PeerError("malformed", f"the entry's {what} is not {size} bytes in hex")
    return bytes.fromhex(value)


def _take_subject(value: object) -> Subject | None:
    if value is None:
        return None
    if not isinstance(value, dict) or set(value) != {"number", "path"} or not isinstance(value["path"], str):
        raise PeerError("malformed", "the entry's subject is not a path with a number")
    number = _take_number(value["number"], "subject's number")
    if number == 0 or not is_subject(value["path"]):
        raise PeerError("malformed", "the entry's subject is not a resource path, numbered from 1")
    return Subject(value["path"], number)
