"""Headers as the several writers of tar make them, and what must be refused."""

from __future__ import annotations

import io
import struct
import tarfile
from typing import Any

import pytest

from enclave_cc.enclave.rootfs import entries as kinds
from enclave_cc.enclave.rootfs import tar_fields
from enclave_cc.enclave.rootfs.entries import Entry
from enclave_cc.enclave.rootfs.tar import TarParser
from enclave_cc.errors import PeerError

END = bytes(1024)


def header(
    name: bytes = b"file",
    flag: bytes = b"0",
    size: bytes = b"0",
    *,
    mode: bytes = b"0000644\0",
    uid: bytes = b"0000000\0",
    mtime: bytes = b"00000000005\0",
    link: bytes = b"",
    magic: bytes = b"ustar\x0000",
    tail: bytes = b"",
    major: bytes = b"",
    checksum: bytes | None = None,
) -> bytes:
    """One header block; `tail` is what follows the device numbers (prefix in ustar)."""
    fields = (name, mode, uid, b"0000000\0", size, mtime, b" " * 8, flag, link, magic, b"", major, b"", tail)
    block = struct.pack("100s8s8s8s12s12s8s1s100s8s64s8s8s167s", *fields)
    if checksum is None:
        checksum = b"%06o\0 " % sum(block)
    return block[:148] + checksum.ljust(8, b"\0") + block[156:]


def padded(body: bytes) -> bytes:
    return body + bytes(-len(body) % 512)


def pax(*records: tuple[bytes, bytes], flag: bytes = b"x") -> bytes:
    body = b""
    for key, value in records:
        length = len(key) + len(value) + 3
        while len(b"%d" % (length + len(b"%d" % length))) != len(b"%d" % length):
            length += 1
        body += b"%d %s=%s\n" % (length + len(b"%d" % length), key, value)
    return header(b"PaxHeaders/x", flag, b"%o" % len(body)) + padded(body)


def parse(data: bytes, chunk: int = 1 << 20) -> list[Entry]:
    parser = TarParser()
    for at in range(0, len(data), chunk):
        parser.feed(data[at : at + chunk])
    return parser.finish()


def refused(data: bytes) -> str:
    with pytest.raises(PeerError) as refusal:
        parse(data)
    assert refusal.value.code == "layer-broken"
    return refusal.value.what


FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("chunk", [1, 511, 512, 513, 1 << 20])
def test_reads_what_the_standard_library_writes(form: str, chunk: int) -> None:
    long = form != "ustar"
    members: list[dict[str, Any]] = [
        {"name": "dir", "type": tarfile.DIRTYPE, "mode": 0o1777},
        {"name": "dir/file", "size": 700, "mode": 0o4755, "uid": 1000, "gid": 50, "mtime": 1_700_000_000},
        {"name": "dir/empty"},
        {"name": "sym", "type": tarfile.SYMTYPE, "linkname": "../dir//file"},
        {"name": "hard", "type": tarfile.LNKTYPE, "linkname": "./dir/file"},
        {"name": "chr", "type": tarfile.CHRTYPE, "devmajor": 5, "devminor": 1},
        {"name": "blk", "type": tarfile.BLKTYPE, "devmajor": 259, "devminor": 70_000},
        {"name": "fifo", "type": tarfile.FIFOTYPE},
        {"name": "p" * 90 + "/" + "q" * 90, "size": 3},
    ]
    if long:
        members.append({"name": "r" * 200 + "/" + "s" * 200, "uid": 3_000_000_000, "size": 5})
        members.append({"name": "long-link", "type": tarfile.SYMTYPE, "linkname": "t" * 300})
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=FORMATS[form]) as archive:
        for fields in members:
            info = tarfile.TarInfo(fields["name"])
            for key, value in fields.items():
                setattr(info, key, value)
            archive.addfile(info, io.BytesIO(b"z" * info.size))
    data = stream.getvalue()

    found = parse(data, chunk)
    assert [e.path.decode() for e in found] == [m["name"] for m in members]
    for entry, fields in zip(found, members, strict=True):
        assert entry.mtime == fields.get("mtime", 0) * 10**9
        assert (entry.uid, entry.gid) == (fields.get("uid", 0), fields.get("gid", 0))
        assert entry.size == fields.get("size", 0)
        assert b"".join(data[at : at + n] for at, n, _ in entry.extents) == b"z" * entry.size
        assert entry.rdev == (fields.get("devmajor", 0), fields.get("devminor", 0))
    assert found[0].mode == 0o1777
    assert found[1].mode == 0o4755
    assert found[3].link == b"../dir//file"  # as written
    assert found[4].link == b"dir/file"  # cleaned
    assert [e.kind for e in found[3:8]] == [kinds.SYMLINK, kinds.HARDLINK, kinds.CHARACTER_DEVICE, kinds.BLOCK_DEVICE, kinds.FIFO]


@pytest.mark.parametrize(
    ("name", "path"),
    [
        (b"./a", b"a"), (b"/a/b", b"a/b"), (b"a//b/", b"a/b"), (b"a/./b", b"a/b"), (b"../../a", b"a"), (b"a/../../b", b"b"),
        (b".", b""), (b"./", b""), (b"/", b""), (b"..", b""), (b"a/..", b""), (b".a/..b/c.", b".a/..b/c."), (b"...", b"..."),
    ],
)  # fmt: skip
def test_paths_are_confined_to_the_root(name: bytes, path: bytes) -> None:
    assert tar_fields.clean_path(name) == path


def test_base_256_numbers() -> None:
    [entry] = parse(header(uid=b"\x80" + (3_000_000_000).to_bytes(7, "big"), mtime=b"\xff" * 11 + b"\xfe") + END)
    assert (entry.uid, entry.mtime) == (3_000_000_000, -2 * 10**9)


def test_padding_of_numbers() -> None:
    assert [tar_fields.parse_number(raw) for raw in (b"  644 \0 ", b"\x00\x00644\x00", b"644\0junk", b"        ", b"\0" * 8)] == [
        0o644, 0o644, 0o644, 0, 0,
    ]  # fmt: skip
    for raw in (b"0o17\0", b"1_0", b"-1", b"+1", b"8", b"1 2", b"abc"):
        with pytest.raises(PeerError):
            tar_fields.parse_number(raw)


def test_a_v7_directory_is_a_file_with_a_slash() -> None:
    first, second = parse(header(b"d/", b"\0", magic=b"") + header(b"f", b"\0", magic=b"") + END)
    assert (first.kind, second.kind) == (kinds.DIRECTORY, kinds.FILE)


def test_v7_has_no_devices_and_no_prefix() -> None:
    [entry] = parse(header(b"c", b"3", magic=b"", major=b"garbage!", tail=b"garbage") + END)
    assert (entry.path, entry.rdev) == (b"c", (0, 0))


def test_the_shorter_prefix_of_star() -> None:
    tail = b"p".ljust(131, b"\0") + b"12345670123 12345670123 " + bytes(8) + b"tar\0"
    assert parse(header(tail=tail) + END)[0].path == b"p/file"


def test_gnu_headers_have_times_where_ustar_has_a_prefix() -> None:
    times = b"14000000000\0" + b"14000000001\0"
    assert parse(header(magic=b"ustar  \0", tail=times) + END)[0].path == b"file"
    # Go before 1.8 wrote a prefix under GNU's magic; images of that time still exist.
    assert parse(header(magic=b"ustar  \0", tail=b"usr/share/deep") + END)[0].path == b"usr/share/deep/file"


def test_signed_checksums_of_old_writers() -> None:
    block = header(b"\xe9\xe9")
    signed = sum(block[:148]) + sum(block[156:]) + 8 * 32 - 2 * 256
    assert parse(header(b"\xe9\xe9", checksum=b"%06o\0 " % signed) + END)[0].path == b"\xe9\xe9"


def test_contiguous_files_are_files() -> None:
    assert parse(header(flag=b"7", size=b"3") + padded(b"abc") + END)[0].size == 3


def test_links_and_directories_have_no_body_whatever_their_size_says() -> None:
    data = header(b"h", b"1", b"7000", link=b"x") + header(b"d", b"5", b"7000") + header(b"f") + END
    assert [e.path for e in parse(data)] == [b"h", b"d", b"f"]


def test_pax_overrides() -> None:
    records = [
        (b"path", b"long/name"), (b"uid", b"4000000000"), (b"gid", b"7"), (b"size", b"3"), (b"mtime", b"12.0000000019"),
        (b"SCHILY.xattr.user.a", b"\0\n=\xff"), (b"SCHILY.xattr.user.empty", b""), (b"comment", b"!"), (b"linkpath", b""),
    ]  # fmt: skip
    entry, other = parse(pax(*records) + header(size=b"777") + padded(b"abc") + header(b"other") + END)
    assert entry[:6] == (b"long/name", kinds.FILE, 0o644, 4_000_000_000, 7, 12_000_000_001)
    assert (entry.size, entry.xattrs) == (3, {b"user.a": b"\0\n=\xff"})
    assert (other.path, other.uid, other.xattrs) == (b"other", 0, {})


@pytest.mark.parametrize(("text", "value"), [(b"1", 10**9), (b"-1.5", -1_500_000_000), (b"0.", 0), (b"9" * 20, (1 << 63) - 1)])
def test_pax_times(text: bytes, value: int) -> None:
    assert tar_fields.parse_pax_time(text) == value


def test_global_headers_hold_until_replaced() -> None:
    data = pax((b"uid", b"5"), (b"path", b"ignored"), flag=b"g") + header(b"a") + pax((b"uid", b"6")) + header(b"b") + header(b"c")
    assert [(e.path, e.uid) for e in parse(data + END)] == [(b"a", 5), (b"b", 6), (b"c", 5)]


def test_gnu_long_names() -> None:
    name, link = b"n" * 200 + b"/" + b"m" * 200, b"l" * 600
    data = header(b"././@LongLink", b"K", b"%o" % (len(link) + 1)) + padded(link + b"\0")
    data += header(b"././@LongLink", b"L", b"%o" % (len(name) + 1)) + padded(name + b"\0")
    [entry] = parse(data + header(b"cut", b"2", link=b"cut") + END)
    assert (entry.path, entry.link) == (name, link)


# sparse files


def slots(*segments: tuple[int, int]) -> bytes:
    return b"".join(b"%011o\0%011o\0" % segment for segment in segments)


def test_gnu_old_sparse_with_extension_blocks() -> None:
    segments = [(index * 8192, 512) for index in range(30)]
    tail = bytes(41) + slots(*segments[:4]) + b"\1" + b"%011o\0" % 300_000
    block = header(flag=b"S", size=b"%o" % (30 * 512), magic=b"ustar  \0", tail=tail)
    assert block[386:398] == b"00000000000\0"
    more = slots(*segments[4:25]) + b"\1" + bytes(7), slots(*segments[25:]).ljust(504, b"\0") + bytes(8)
    data = block + b"".join(more) + b"x" * 30 * 512 + header(b"next") + END
    sparse, following = parse(data)
    assert sparse.size == 300_000
    assert [(length, at) for _, length, at in sparse.extents] == [(512, at) for at, _ in segments]
    assert sparse.extents[0][0] == 512 * 3
    assert following.path == b"next"


@pytest.mark.parametrize("version", ["0.0", "0.1", "1.0"])
def test_pax_sparse(version: str) -> None:
    body = b"A" * 512 + b"B" * 100
    records = [(b"GNU.sparse.name", b"real"), (b"GNU.sparse.realsize", b"20000")]
    prefix = b""
    if version == "1.0":
        records += [(b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0")]
        prefix = padded(b"3\n0\n512\n10000\n100\n20000\n0\n")
    elif version == "0.1":
        records[1] = (b"GNU.sparse.size", b"20000")
        records.append((b"GNU.sparse.map", b"0,512,10000,100,20000,0"))
    else:
        for offset, length in ((0, 512), (10_000, 100), (20_000, 0)):
            records += [(b"GNU.sparse.offset", b"%d" % offset), (b"GNU.sparse.numbytes", b"%d" % length)]
    stored = prefix + body
    head = pax(*records)
    data = head + header(b"GNUSparseFile.0/real", size=b"%o" % len(stored)) + padded(stored) + header(b"next") + END
    for chunk in (1, 1 << 20):
        sparse, following = parse(data, chunk)
        at = len(head) + 512 + len(prefix)
        assert (sparse.path, sparse.size) == (b"real", 20_000)
        assert sparse.extents == ((at, 512, 0), (at + 512, 100, 10_000))
        assert following.path == b"next"


def test_a_sparse_map_of_many_blocks() -> None:
    count = 2000
    text = b"%d\n" % count + b"".join(b"%d\n1\n" % (index * 4096) for index in range(count))
    stored = padded(text) + b"d" * count
    records = [(b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0"), (b"GNU.sparse.realsize", b"%d" % (count * 4096))]
    [entry] = parse(pax(*records) + header(size=b"%o" % len(stored)) + padded(stored) + END, 1000)
    assert len(entry.extents) == count


@pytest.mark.parametrize(
    "table", [b"512,512,0,512", b"0,512,100,512", b"0,512,19999,512", b"0,512", b"0,1024,5000,0,7", b"a,b", b"-1,5"]
)
def test_sparse_maps_that_cannot_be(table: bytes) -> None:
    records = [(b"GNU.sparse.map", table), (b"GNU.sparse.size", b"20000")]
    refused(pax(*records) + header(size=b"2000") + bytes(1024) + END)


# the end


def test_the_end() -> None:
    member = header(size=b"3") + padded(b"abc")
    for end in (b"", bytes(512), END, END + b"anything goes here", bytes(10_240)):
        assert len(parse(member + end)) == 1
    assert len(parse(member[: 512 + 3])) == 1  # the last padding may be missing
    assert parse(b"") == []
    assert "zero block" in refused(member + bytes(512) + member)


def test_dirty_padding_is_noticed_in_any_chunking() -> None:
    body = b"abc" + bytes(300) + b"!" + bytes(208)
    for chunk in (1, 100, 515, 4096):
        dirty, clean = parse(header(size=b"3") + body + header(b"b", size=b"3") + padded(b"abc") + END, chunk)
        assert (dirty.dirty_padding, clean.dirty_padding) == (True, False)


@pytest.mark.parametrize(
    "data",
    [
        header()[:300],
        header(size=b"1000") + bytes(100),
        pax((b"a", b"b")),
        pax((b"a", b"b")) + END,
        pax((b"a", b"b"))[:600],
        header(b"x", b"L", b"5") + padded(b"abcd\0"),
        header(flag=b"S", tail=bytes(41) + slots((0, 1)) + b"\1" + b"1000\0"),
    ],
)
def test_a_stream_that_stops_within_a_member(data: bytes) -> None:
    refused(data)


@pytest.mark.parametrize(
    "data",
    [
        header(checksum=b"000000\0 "),
        header(checksum=b"zzzzzz\0 "),
        header(flag=b"V"),
        header(size=b"\xff" * 12),
        header(size=b"\x80" + b"\xff" * 11),
        header(uid=b"\xff" * 8),
        header(uid=b"\x80\0\0\0\xff\xff\xff\xff"),
        header(flag=b"2"),
        header(b"n" * 100 + b"", b"3", major=b"\x80\0\0\1\0\0\0\0"),
        header(b"x", b"x", b"%o" % (1 << 21)),
        header(b"x", b"x", b"5") + padded(b"hello"),
        header(b"x", b"x", b"6") + padded(b"5 a=b\n"),
        header(b"x", b"x", b"6") + padded(b"9 a=b\n"),
        header(b"x", b"x", b"5") + padded(b"5 =b\n"),
        header(b"x", b"x", b"45") + padded(b"6 a=b\n" + b"no-space-in-its-first-20-bytes\n"),  # looked back once, for ever
        header(b"x", b"x", b"14") + padded(b"6 a=b\n0 a=b\n"),
        pax((b"path", b"a\0b")) + header(),
        pax((b"path", b"a" * 256)) + header(),
        pax((b"path", b"/".join([b"a" * 200] * 30))) + header(),
        pax((b"linkpath", b"a" * 4096)) + header(flag=b"2"),
        pax((b"size", b"-1")) + header(),
        pax((b"uid", b"1.5")) + header(),
        pax((b"mtime", b"now")) + header(),
        pax((b"GNU.sparse.major", b"2"), (b"GNU.sparse.minor", b"0"), (b"GNU.sparse.realsize", b"5")) + header(),
    ],
)  # fmt: skip
def test_what_is_refused(data: bytes) -> None:
    refused(data + END)


def test_the_number_of_members_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("enclave_cc.enclave.rootfs.tar.MAX_ENTRIES", 3)
    assert len(parse(header() * 3 + END)) == 3
    assert "too many" in refused(header() * 4 + END)


def test_extended_attributes_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that Linux cannot have, and a global header whose attributes every file would get."""
    long = pax((b"SCHILY.xattr.user." + b"x" * 70_000, b"v"))
    assert "extended attributes" in refused(long + header() + bytes(1024))
    monkeypatch.setattr("enclave_cc.enclave.rootfs.tar.MAX_XATTRS", 4000)
    everywhere = pax((b"SCHILY.xattr.user.x", b"v" * 1000), flag=b"g")
    assert len(parse(everywhere + header() * 3 + bytes(1024))) == 3
    assert "extended attributes" in refused(everywhere + header() * 4 + bytes(1024))
