"""Push parser for the tar stream of a layer: headers become entries, bodies are skipped by arithmetic and never copied.

Reads v7, ustar, star, pax (local and global headers, xattrs as SCHILY.xattr.*), GNU (long names and links, base-256
numbers, old sparse files) and pax sparse 0.0, 0.1 and 1.0. The end is two zero blocks or the end of the stream; what
follows the zero blocks is padding and is ignored. A layer is hostile until its digests held, so everything is bounded
and nothing but `PeerError("layer-broken")` is raised.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final
from zlib import adler32

from enclave_cc.enclave.rootfs import entries as kinds
from enclave_cc.enclave.rootfs import tar_fields as fields
from enclave_cc.enclave.rootfs.entries import MAX_ENTRIES, NO_XATTRS, Entry, Extent
from enclave_cc.enclave.rootfs.tar_fields import broken
from enclave_cc.errors import PeerError, foreign

BLOCK: Final = 512
MAX_XATTRS: Final = 1 << 26  # names and values of a whole layer; SELinux labels of 400,000 files are a third of it
MAX_EXTENSION: Final = 1 << 20  # a pax header or long name; Go's archive/tar has the same limit

# name mode uid gid size mtime checksum type linkname magic+version (uname gname) major minor prefix (rest)
_HEADER: Final = struct.Struct("100s8s8s8s12s12s8sc100s8s64x8s8s155s12x")
_ZEROS: Final = bytes(BLOCK)
_XATTR: Final = b"SCHILY.xattr."
_KINDS: Final = {
    b"0": kinds.FILE,
    b"\0": kinds.FILE,
    b"7": kinds.FILE,  # contiguous: a hint nobody needs
    b"S": kinds.FILE,
    b"1": kinds.HARDLINK,
    b"2": kinds.SYMLINK,
    b"3": kinds.CHARACTER_DEVICE,
    b"4": kinds.BLOCK_DEVICE,
    b"5": kinds.DIRECTORY,
    b"6": kinds.FIFO,
}
# A global record of these would speak of all files at once; only a local header can mean it.
_LOCAL_ONLY: Final = (b"path", b"linkpath", b"size")
_BILLION: Final = 1_000_000_000

Pax = dict[bytes, bytes]


class TarParser:
    """`feed` chunks of any size in order, then `finish` once."""

    __slots__ = (
        "_ended", "_entries", "_global", "_handle", "_held", "_long_link", "_long_name", "_offset", "_padding", "_pax",
        "_skip", "_sparse_records", "_want", "_xattrs_left", "_zero_seen",
    )  # fmt: skip

    def __init__(self) -> None:
        self._entries: list[Entry] = []
        self._offset = 0  # of the next thing to be read, in the stream
        self._skip = 0  # bytes of body and padding still to come
        self._padding = 0  # how many of them are padding
        self._want = BLOCK
        self._held = bytearray()
        self._handle: Callable[[bytes], None] = self._header
        self._zero_seen = self._ended = False
        self._global: Pax = {}
        self._xattrs_left = MAX_XATTRS
        self._pax: Pax | None = None
        self._sparse_records: list[bytes] = []  # pax 0.0 repeats its keys, in order
        self._long_name = self._long_link = b""

    def feed(self, chunk: bytes | bytearray | memoryview) -> None:
        """Raises `PeerError("layer-broken")`; the parser is of no use after that."""
        view = memoryview(chunk)
        at, end = 0, len(view)
        held = self._held
        while at < end and not self._ended:
            if self._skip:
                step = min(self._skip, end - at)
                if self._padding and self._skip - step < self._padding:
                    padding = view[at + max(self._skip - self._padding, 0) : at + step]
                    if bytes(padding).strip(b"\0"):
                        self._entries[-1] = self._entries[-1]._replace(dirty_padding=True)
                self._skip -= step
                at += step
                continue
            take = self._want - len(held)
            if take > end - at:
                held += view[at:]
                return
            if held:
                held += view[at : at + take]
                block = bytes(held)
                held.clear()
            else:
                block = bytes(view[at : at + take])
            at += take
            self._offset += len(block)
            self._handle(block)

    def finish(self) -> list[Entry]:
        """All entries in stream order. Raises `PeerError("layer-broken")` if the stream stopped within a member.

        As in Go, the zero blocks may be missing, and so may the padding of the last body.
        """
        dangling = self._pax is not None or self._long_name or self._long_link
        if not self._ended and (self._held or self._skip > self._padding or self._handle != self._header or dangling):
            raise broken("the stream ends within a member")
        return self._entries

    def _body(self, size: int) -> int:
        """Step over a body of `size` bytes; returns where it begins."""
        at = self._offset
        self._padding = -size % BLOCK
        self._skip = size + self._padding
        self._offset = at + self._skip
        return at

    def _header(self, block: bytes) -> None:
        if block[0] == 0 and block == _ZEROS:
            if self._zero_seen:
                if self._pax is not None or self._long_name or self._long_link:
                    raise broken("an extension header with no member")
                self._ended = True
            self._zero_seen = True
            return
        if self._zero_seen:
            raise broken("a single zero block within the archive")
        (name, mode, uid, gid, size, mtime, checksum, flag, link, magic, major, minor, prefix) = _HEADER.unpack(block)

        # Two Adler sums of 256 bytes each cannot wrap (255 * 256 < 65521): the exact byte sum at C speed.
        found = (adler32(block[:256]) & 0xFFFF) + (adler32(block[256:]) & 0xFFFF) - 2 - sum(checksum) + 8 * 0x20
        told = fields.parse_number(checksum)
        if found != told:
            # Some historic writers summed signed bytes.
            negative = sum(b > 127 for b in block) - sum(b > 127 for b in checksum)
            if found - 256 * negative != told:
                raise broken("header checksum")

        length = fields.parse_number(size)
        if not 0 <= length <= fields.MAX_SIZE:
            raise broken("size")
        if flag in b"xgLK":
            self._expect_extension(flag, length)
            return
        kind = _KINDS.get(flag)
        if kind is None:
            raise broken(f"member of unknown type {foreign(flag)!r}")
        if len(self._entries) >= MAX_ENTRIES:
            raise broken("too many members")

        name = name.partition(b"\0")[0]
        device = (0, 0)
        if magic[:5] == b"ustar":
            if magic[5] == 0:
                if prefix[0]:
                    tail = 131 if block[508:] == b"tar\0" else 155  # star keeps times after its shorter prefix
                    name = prefix[:tail].partition(b"\0")[0] + b"/" + name
            elif prefix[0] and (old := _go_prefix(prefix)):
                name = old + b"/" + name
            if flag in b"34":
                device = (fields.parse_number(major), fields.parse_number(minor))
                if not (0 <= device[0] < 1 << 32 and 0 <= device[1] < 1 << 32):
                    raise broken("device number")
        link = link.partition(b"\0")[0]
        owner, group = fields.parse_repeated_number(uid), fields.parse_repeated_number(gid)
        modified = fields.parse_number(mtime) * _BILLION
        xattrs = NO_XATTRS
        pax = self._pax
        if pax is None:
            pax = self._global
        elif self._global:
            pax = self._global | pax
        if pax:
            # An empty value leaves the header's own in force, as Go reads it.
            if value := pax.get(b"path"):
                name = value
            if value := pax.get(b"linkpath"):
                link = value
            if value := pax.get(b"size"):
                length = fields.parse_decimal(value)
            if value := pax.get(b"uid"):
                owner = fields.parse_decimal(value)
            if value := pax.get(b"gid"):
                group = fields.parse_decimal(value)
            if value := pax.get(b"mtime"):
                modified = fields.parse_pax_time(value)
            attributes = {k[len(_XATTR) :]: v for k, v in pax.items() if v and k.startswith(_XATTR)}
            if attributes:
                self._take_xattrs(attributes)
                xattrs = attributes
        if self._long_name or self._long_link:
            name, link = self._long_name or name, self._long_link or link
        sparse = kind == kinds.FILE and (flag == b"S" or any(k.startswith(b"GNU.sparse.") for k in pax))
        if sparse and (value := pax.get(b"GNU.sparse.name")):
            name = value
        sparse_records, self._sparse_records = self._sparse_records, []
        self._pax, self._long_name, self._long_link = None, b"", b""

        if not (0 <= owner <= fields.MAX_ID and 0 <= group <= fields.MAX_ID):
            raise broken("owner")
        if flag == b"\0" and name[-1:] == b"/":
            kind = kinds.DIRECTORY  # v7 had no other way to say it
        permissions = fields.parse_repeated_number(mode) & 0o7777
        path = fields.clean_path(name)
        if b"\0" in path or b"\0" in link:
            raise broken("NUL in a path")
        if kind == kinds.HARDLINK:
            link = fields.clean_path(link)
        elif kind == kinds.SYMLINK:
            if not 0 < len(link) <= fields.MAX_PATH:
                raise broken("the target of a symbolic link is empty or too long")
            permissions = 0o777  # Linux knows no other
        else:
            link = b""
        entry = Entry(
            path, kind, permissions, owner, group, fields.confine_time(modified),
            0, link, device, xattrs, (),
        )  # fmt: skip
        if kind != kinds.FILE:
            self._entries.append(entry)  # of these, Go ignores the size field
        elif sparse:
            self._sparse(entry, block, flag, length, pax, sparse_records)
        else:
            at = self._body(length)
            extents: tuple[Extent, ...] = ((at, length, 0),) if length else ()
            self._entries.append(entry._replace(size=length, extents=extents))

    def _take_xattrs(self, attributes: Pax) -> None:
        """Bounds them: a global header is short, and speaks of every file."""
        self._xattrs_left -= sum(map(len, attributes)) + sum(map(len, attributes.values()))
        if self._xattrs_left < 0 or max(map(len, attributes)) > fields.MAX_NAME:
            raise broken("extended attributes too long")

    # extension headers

    def _expect_extension(self, flag: bytes, length: int) -> None:
        if length > MAX_EXTENSION:
            raise broken("extension header too long")
        handlers = {b"x": self._local_pax, b"g": self._global_pax, b"L": self._gnu_name, b"K": self._gnu_link}
        handler = handlers[flag]

        def handle(body: bytes) -> None:
            self._want, self._handle = BLOCK, self._header
            handler(body[:length])

        if length:
            self._want, self._handle = length + -length % BLOCK, handle
        else:
            handler(b"")

    def _local_pax(self, body: bytes) -> None:
        records = fields.parse_pax(body)
        self._pax = dict(records)
        if b"GNU.sparse.offset" in self._pax:
            self._sparse_records = [v for k, v in records if k in (b"GNU.sparse.offset", b"GNU.sparse.numbytes")]

    def _global_pax(self, body: bytes) -> None:
        for key, value in fields.parse_pax(body):
            if key not in _LOCAL_ONLY and not key.startswith(b"GNU.sparse."):
                self._global[key] = value
        if len(self._global) > 1024 or sum(map(len, self._global.values())) > MAX_EXTENSION:
            raise broken("too many global pax records")

    def _gnu_name(self, body: bytes) -> None:
        self._long_name = body.partition(b"\0")[0]

    def _gnu_link(self, body: bytes) -> None:
        self._long_link = body.partition(b"\0")[0]

    # sparse files

    def _sparse(self, entry: Entry, block: bytes, flag: bytes, stored: int, pax: Pax, records: list[bytes]) -> None:
        if flag == b"S":
            size = fields.parse_number(block[483:495])
            if not 0 <= size <= fields.MAX_SIZE:
                raise broken("size")
            segments = fields.parse_sparse_slots(block[386:482])
            if block[482]:
                self._handle = lambda more: self._sparse_slots(entry, size, stored, segments, more)
            else:
                self._add_sparse(entry, size, stored, segments)
            return
        size = fields.parse_decimal(pax.get(b"GNU.sparse.realsize") or pax.get(b"GNU.sparse.size", b""))
        if pax.get(b"GNU.sparse.major"):
            if (pax[b"GNU.sparse.major"], pax.get(b"GNU.sparse.minor")) != (b"1", b"0"):
                raise broken("sparse file of an unknown version")
            self._handle = lambda more: self._sparse_body(entry, size, stored, [], b"", more)
        elif table := pax.get(b"GNU.sparse.map"):
            self._add_sparse(entry, size, stored, fields.parse_sparse_text(table.split(b",")))
        else:
            self._add_sparse(entry, size, stored, fields.parse_sparse_text(records))

    def _sparse_slots(self, entry: Entry, size: int, stored: int, segments: list[tuple[int, int]], block: bytes) -> None:
        """GNU old format: one more block of 21 slots."""
        segments += fields.parse_sparse_slots(block[:504])
        if len(segments) > fields.MAX_SPARSE_EXTENTS:
            raise broken("sparse map too long")
        if not block[504]:
            self._handle = self._header
            self._add_sparse(entry, size, stored, segments)

    def _sparse_body(self, entry: Entry, size: int, stored: int, numbers: list[bytes], rest: bytes, block: bytes) -> None:
        """pax 1.0: the map is text at the start of the body, padded to a block."""
        stored -= BLOCK
        *complete, rest = (rest + block).split(b"\n")
        numbers += complete
        if stored < 0 or not numbers or len(rest) > BLOCK:
            raise broken("sparse map")
        wanted = 1 + 2 * fields.parse_decimal(numbers[0], fields.MAX_SPARSE_EXTENTS)
        if len(numbers) < wanted:
            self._handle = lambda more: self._sparse_body(entry, size, stored, numbers, rest, more)
            return
        self._handle = self._header
        self._add_sparse(entry, size, stored, fields.parse_sparse_text(numbers[1:wanted]))

    def _add_sparse(self, entry: Entry, size: int, stored: int, segments: list[tuple[int, int]]) -> None:
        at = self._body(stored)
        self._entries.append(entry._replace(size=size, extents=fields.check_sparse(segments, size, stored, at)))


def _go_prefix(prefix: bytes) -> bytes:
    """GNU headers keep access and change times where ustar keeps the prefix; Go before 1.8 wrote a prefix there."""
    try:
        fields.parse_number(prefix[:12])
        fields.parse_number(prefix[12:24])
    except PeerError:
        text = prefix.partition(b"\0")[0]
        return text if text.isascii() else b""
    return b""
