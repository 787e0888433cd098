"""Audit entries and exports: what can be written reads back, in one form; anything else raises `PeerError` only."""

from __future__ import annotations

import contextlib
import json

from hypothesis import given
from hypothesis import strategies as st

from enclave_cc.errors import PeerError, UsageError
from enclave_cc.wire.audit.entry import Entry, Subject, encode_document, encode_entry
from enclave_cc.wire.audit.export import CheckpointLine, End, EntryLine, Header, parse_line

TEXT = st.text(max_size=40)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=5),
    max_leaves=15,
)
CLEAN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 53) + 1, (1 << 53) - 1)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters(max_codepoint=127)), inner, max_size=5),
    max_leaves=12,
)
DOCUMENTS = st.dictionaries(st.from_regex(r"[a-z_]{1,9}", fullmatch=True), CLEAN, max_size=5)
PATHS = st.from_regex(r"(?:[A-Za-z0-9_.-]{1,9}(?:/[A-Za-z0-9_.-]{1,9}){0,2})?", fullmatch=True)
HASHES = st.lists(st.binary(min_size=32, max_size=32), max_size=9).map(tuple)
ENTRIES = st.builds(
    Entry,
    index=st.integers(0, (1 << 53) - 1),
    at=st.integers(0, 1 << 40),
    kind=st.from_regex(r"[a-z][a-z0-9-]{0,20}", fullmatch=True),
    document=DOCUMENTS,
    previous=st.binary(min_size=32, max_size=32),
    salt=st.binary(min_size=16, max_size=16),
    subject=st.none() | st.builds(Subject, PATHS, st.integers(1, 1 << 40)),
)


@given(entry=ENTRIES, proof=HASHES)
def test_what_can_be_written_reads_back(entry: Entry, proof: tuple[bytes, ...]) -> None:
    data = entry.encode()
    assert Entry.parse(data) == entry
    rest = {name: getattr(entry, name) for name in ("index", "at", "kind", "previous", "salt", "subject")}
    assert encode_entry(encode_document(entry.document), **rest) == data
    for line in (EntryLine(entry), EntryLine(entry, proof)):
        assert parse_line(line.encode()[:-1]) == line


@given(entry=ENTRIES)
def test_an_entry_has_one_form(entry: Entry) -> None:
    value = entry.to_json()
    for text in (json.dumps(value), json.dumps(value, indent=1), json.dumps(dict(reversed(value.items())), separators=(",", ":"))):
        with contextlib.suppress(PeerError):
            assert Entry.parse(text.encode()).encode() == text.encode()


@given(member=st.sampled_from(["version", "index", "at", "kind", "document", "previous", "salt", "subject", "more"]), value=JSON)
def test_any_member_is_read_or_refused(member: str, value: object) -> None:
    entry = Entry(3, 4, "start", {}, bytes(32), bytes(16)).to_json() | {member: value}
    try:
        parsed = Entry.from_json(entry)
    except PeerError as error:
        assert error.code == "malformed"
    else:
        assert parsed.to_json() == entry


@given(data=st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_line_is_read_or_refused(data: bytes) -> None:
    for parse in (parse_line, Entry.parse):
        with contextlib.suppress(PeerError):
            parse(data)


@given(
    kind=st.sampled_from(
        [["checkpoint", "format", "origin", "prefix"], ["note"], ["consistency", "note"], ["entries"], ["entry", "proof"]]
    ),
    values=st.lists(JSON | st.just("enclave-cc/audit-export/1"), min_size=4, max_size=4),
)
def test_any_members_of_a_line_are_read_or_refused(kind: list[str], values: list[object]) -> None:
    with contextlib.suppress(PeerError):
        parse_line(json.dumps(dict(zip(kind, values, strict=False))).encode())


@given(
    origin=st.from_regex(r"[a-z./]{1,20}", fullmatch=True), prefix=st.none() | PATHS, count=st.integers(0, 1 << 60), proof=HASHES
)
def test_other_lines_read_back(origin: str, prefix: str | None, count: int, proof: tuple[bytes, ...]) -> None:
    for line in (Header(origin, prefix, "— ä\n".encode()), CheckpointLine(b"x\n"), CheckpointLine(b"x", proof), End(count)):
        assert parse_line(line.encode()[:-1]) == line


@given(document=st.dictionaries(TEXT, JSON, max_size=4))
def test_any_document_is_encoded_for_good_or_refused(document: dict[str, object]) -> None:
    with contextlib.suppress(UsageError):
        data = encode_document(document)
        assert json.loads(data) == document
