"""Layers and cached entries: any bytes parse or raise `PeerError`; cutting a stream differently changes nothing."""

from __future__ import annotations

import io
import tarfile

from hypothesis import given, settings
from hypothesis import strategies as st

from enclave_cc.enclave.rootfs import entries, tar_fields
from enclave_cc.enclave.rootfs.entries import Entry, decode_entries, encode_entries
from enclave_cc.enclave.rootfs.erofs import write_metadata
from enclave_cc.enclave.rootfs.tar import TarParser
from enclave_cc.enclave.rootfs.tree import merge
from enclave_cc.errors import PeerError

LIMIT = settings(max_examples=150, deadline=None)


@st.composite
def archives(draw: st.DrawFn) -> bytes:
    stream = io.BytesIO()
    form = draw(st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]))
    with tarfile.open(fileobj=stream, mode="w", format=form) as archive:
        for _ in range(draw(st.integers(0, 4))):
            info = tarfile.TarInfo(draw(st.text("ab/.é", min_size=1, max_size=20)))
            info.type = draw(st.sampled_from([b"0", b"1", b"2", b"3", b"5", b"6"]))
            info.linkname = draw(st.text("ab/.", min_size=1, max_size=10))
            body = draw(st.binary(max_size=600)) if info.type == b"0" else b""
            info.size = len(body)
            if form == tarfile.PAX_FORMAT:
                info.pax_headers = draw(st.dictionaries(st.sampled_from(["SCHILY.xattr.user.a", "mtime", "x"]), st.just("1.5")))
            archive.addfile(info, io.BytesIO(body))
    return stream.getvalue()


def parse(data: bytes, cuts: list[int] | None = None) -> list[Entry] | None:
    parser = TarParser()
    try:
        last = 0
        for cut in [*sorted(c % (len(data) + 1) for c in cuts or []), len(data)]:
            parser.feed(memoryview(data)[last:cut])
            last = cut
        return parser.finish()
    except PeerError as refusal:
        assert refusal.code == "layer-broken"
        return None


@LIMIT
@given(archives(), st.lists(st.integers(0, 1 << 20), max_size=8))
def test_where_a_stream_is_cut_does_not_matter(data: bytes, cuts: list[int]) -> None:
    assert parse(data, cuts) == parse(data)


@LIMIT
@given(archives(), st.integers(0, 1 << 20), st.binary(min_size=1, max_size=12))
def test_a_damaged_archive_parses_or_is_refused(data: bytes, at: int, damage: bytes) -> None:
    at %= len(data)
    found = parse(data[:at] + damage + data[at + len(damage) :])
    if found is not None:
        try:
            write_metadata(merge([found]), [len(data) & -512])
        except PeerError as refusal:
            assert refusal.code in ("layer-broken", "unsupported-image")


@LIMIT
@given(st.binary(max_size=2048))
def test_any_bytes_are_an_archive_or_refused(data: bytes) -> None:
    parse(data)


@LIMIT
@given(st.binary(max_size=300))
def test_any_path_is_confined(path: bytes) -> None:
    try:
        clean = tar_fields.clean_path(path)
    except PeerError:
        return
    assert not {b"", b".", b".."} & set(clean.split(b"/")) or clean == b""
    assert tar_fields.clean_path(clean) == clean


sizes = st.integers(0, (1 << 63) - 1)
strings = st.binary(max_size=20).map(lambda b: b.replace(b"\0", b""))
entry_values = st.builds(
    Entry,
    strings,
    st.integers(0, entries.SOCKET),
    st.integers(0, 0o7777),
    st.integers(0, (1 << 32) - 1),
    st.integers(0, (1 << 32) - 1),
    st.integers(-(1 << 63), (1 << 63) - 1),
    sizes,
    strings,
    st.tuples(st.integers(0, (1 << 32) - 1), st.integers(0, (1 << 32) - 1)),
    st.dictionaries(st.binary(max_size=8), st.binary(max_size=8), max_size=3),
    st.lists(st.tuples(sizes, sizes, sizes), max_size=3).map(tuple),
    st.booleans(),
)


@LIMIT
@given(st.lists(entry_values, max_size=5))
def test_entries_survive_the_cache(values: list[Entry]) -> None:
    assert decode_entries(encode_entries(values)) == values


@LIMIT
@given(st.lists(entry_values, min_size=1, max_size=5), st.integers(0, 1 << 16), st.binary(min_size=1, max_size=8))
def test_damaged_cache_entries_decode_or_are_refused(values: list[Entry], at: int, damage: bytes) -> None:
    data = encode_entries(values)
    at %= len(data)
    try:
        found = decode_entries(data[:at] + damage + data[at + len(damage) :])
        write_metadata(merge([found]), [4096])
    except PeerError:
        pass
