"""What a tar layer says about one path, and the form in which the node cache keeps it.

An `Entry` is a tar header after all extension records were applied; file bodies stay in the layer's stream and are
named by extents. Paths are cleaned as umoci's `CleanPath` does (lexically, `..` confined to the root), relative, with
no leading or trailing slash; the root directory itself is `b""`.

`encode_entries` writes columns rather than records: 60,000 entries are written and read in 0.1 s each.
The bytes are ours and sealed, yet `decode_entries` treats them as hostile and raises nothing but `PeerError`.

    magic "ECCENT1\\0" | count u32 | extent count u32 | xattr count u32 | paths length u64 | links length u64
    kinds u8[count], bit 7: dirty padding | modes u16[] | uids u32[] | gids u32[] | majors u32[] | minors u32[]
    extents per entry u32[] | mtimes i64[] | sizes u64[] | extents 3 x u64[] | paths, NUL between | links, NUL between
    xattrs: entry index u32 | name length u16 | value length u32 | name | value   (entry order)
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from itertools import chain, islice
from types import MappingProxyType
from typing import Final, NamedTuple

from enclave_cc.errors import PeerError

FILE: Final = 0
DIRECTORY: Final = 1
SYMLINK: Final = 2
HARDLINK: Final = 3
CHARACTER_DEVICE: Final = 4
BLOCK_DEVICE: Final = 5
FIFO: Final = 6
SOCKET: Final = 7  # never in a tar; the metadata writer knows it

MAX_ENTRIES: Final = 1 << 21  # a full Debian has some 400,000 paths

_MAGIC: Final = b"ECCENT1\0"
_HEADER: Final = struct.Struct("<8sIIIQQ")
_CLEAR_BIT_7: Final = bytes(range(128)) * 2
_XATTR: Final = struct.Struct("<IHI")
NO_XATTRS: Final[Mapping[bytes, bytes]] = MappingProxyType({})

Extent = tuple[int, int, int]  # offset in the layer's stream, length, offset in the file; bytes


class Entry(NamedTuple):
    """One path of one layer. A named tuple: made 60,000 times in a cold start, so its constructor must be C.

    `size` is the size of the file as it will be read (holes included). `link` is the symlink's target as written, or
    the hard link's target cleaned like `path`. What no extent covers reads as zeros.
    """

    path: bytes
    kind: int
    mode: int = 0o644  # permission bits, set-id and sticky only
    uid: int = 0
    gid: int = 0
    mtime: int = 0  # nanoseconds since the epoch
    size: int = 0
    link: bytes = b""
    rdev: tuple[int, int] = (0, 0)  # major, minor
    xattrs: Mapping[bytes, bytes] = NO_XATTRS
    extents: tuple[Extent, ...] = ()
    dirty_padding: bool = False  # tar padding that is not zeros would show behind the file in a memory mapping


def encode_entries(entries: list[Entry]) -> bytes:
    """The node cache's form of a layer's entries."""
    count = len(entries)
    if not count:
        return _HEADER.pack(_MAGIC, 0, 0, 0, 0, 0)
    paths, kinds, modes, uids, gids, mtimes, sizes, links, rdevs, xattrs, extents, dirty = zip(*entries, strict=True)
    majors, minors = zip(*rdevs, strict=True)
    extents_per_entry = [len(e) for e in extents]
    extents_flat = list(chain.from_iterable(chain.from_iterable(extents)))
    path_blob, link_blob = b"\0".join(paths), b"\0".join(links)
    xattr_parts: list[bytes] = []
    xattr_count = 0
    for index, attributes in enumerate(xattrs):
        for name, value in attributes.items():
            xattr_parts += (_XATTR.pack(index, len(name), len(value)), name, value)
            xattr_count += 1
    header = _HEADER.pack(_MAGIC, count, len(extents_flat) // 3, xattr_count, len(path_blob), len(link_blob))
    return b"".join(
        (
            header,
            bytes(kind | 0x80 * padding for kind, padding in zip(kinds, dirty, strict=True)) if any(dirty) else bytes(kinds),
            struct.pack(f"<{count}H", *modes),
            struct.pack(f"<{count * 5}I", *uids, *gids, *majors, *minors, *extents_per_entry),
            struct.pack(f"<{count}q", *mtimes),
            struct.pack(f"<{count}Q", *sizes),
            struct.pack(f"<{len(extents_flat)}Q", *extents_flat),
            path_blob,
            link_blob,
            *xattr_parts,
        )
    )


def decode_entries(data: bytes) -> list[Entry]:
    """The inverse of `encode_entries`. Raises `PeerError("malformed")` for anything else."""
    try:
        return _decode(memoryview(data))
    except (struct.error, ValueError, IndexError, OverflowError) as error:
        raise PeerError("malformed", "the cached entries of a layer are not in their format") from error


def _decode(data: memoryview) -> list[Entry]:
    magic, count, extent_count, xattr_count, path_length, link_length = _HEADER.unpack_from(data)
    at = _HEADER.size
    fixed = at + count * (1 + 2 + 20 + 16) + extent_count * 24 + path_length + link_length
    if magic != _MAGIC or count > MAX_ENTRIES or fixed > len(data):
        raise ValueError("header")
    if not count:
        if fixed != len(data) or extent_count or xattr_count:
            raise ValueError("trailing bytes")
        return []

    def column(form: str, length: int) -> tuple[int, ...]:
        nonlocal at
        packed = struct.Struct(f"<{length}{form}")
        values = packed.unpack_from(data, at)
        at += packed.size
        return values

    kinds, modes = column("B", count), column("H", count)
    uids, gids, majors, minors, extents_per_entry = (column("I", count) for _ in range(5))
    mtimes, sizes = column("q", count), column("Q", count)
    flat = iter(column("Q", extent_count * 3))
    paths = bytes(data[at : at + path_length]).split(b"\0")
    at += path_length
    links = bytes(data[at : at + link_length]).split(b"\0")
    at += link_length
    dirty = [kind > 0x7F for kind in kinds]
    kinds = tuple(bytes(kinds).translate(_CLEAR_BIT_7))
    if max(kinds) > SOCKET or max(modes) > 0o7777 or sum(extents_per_entry) != extent_count:
        raise ValueError("columns")
    triples = zip(flat, flat, flat, strict=True)
    extents: list[tuple[Extent, ...]] = [tuple(islice(triples, n)) if n else () for n in extents_per_entry]

    xattrs: list[Mapping[bytes, bytes]] = [NO_XATTRS] * count
    current: dict[bytes, bytes] = {}
    previous = -1
    for _ in range(xattr_count):
        index, name_length, value_length = _XATTR.unpack_from(data, at)
        at += _XATTR.size
        end = at + name_length + value_length
        if index < previous or end > len(data):
            raise ValueError("xattr")
        if index != previous:
            xattrs[index] = current = {}
            previous = index
        current[bytes(data[at : at + name_length])] = bytes(data[at + name_length : end])
        at = end
    if at != len(data):
        raise ValueError("trailing bytes")
    rdevs = zip(majors, minors, strict=True)
    columns = zip(paths, kinds, modes, uids, gids, mtimes, sizes, links, rdevs, xattrs, extents, dirty, strict=True)
    return list(map(Entry._make, columns))
