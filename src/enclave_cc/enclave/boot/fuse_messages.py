"""The FUSE messages that a read-only flat directory needs (include/uapi/linux/fuse.h, protocol 7.x).

All integers are in the machine's byte order: the peer is the kernel below.
"""

from __future__ import annotations

import struct
from typing import Final

MAJOR: Final = 7
MINOR: Final = 36  # what is spoken here; the kernel speaks down to it
OLDEST_MINOR: Final = 28  # Linux 4.20: max_pages

LOOKUP, FORGET, GETATTR, OPEN, READ, STATFS, RELEASE, FLUSH = 1, 2, 3, 14, 15, 17, 18, 25
INIT, OPENDIR, READDIR, RELEASEDIR, INTERRUPT, DESTROY, BATCH_FORGET = 26, 27, 28, 29, 36, 38, 42

# INIT flags
ASYNC_READ: Final = 1 << 0
PARALLEL_DIROPS: Final = 1 << 18
MAX_PAGES: Final = 1 << 22
# OPEN flags
DIRECT_IO: Final = 1 << 0
KEEP_CACHE: Final = 1 << 1

ROOT: Final = 1
FOREVER: Final = 1 << 31  # seconds; nothing here ever changes

HEADER = struct.Struct("=IIQQIIIHH")  # length, opcode, unique, node id, uid, gid, pid, extension length, padding
REPLY = struct.Struct("=IiQ")  # length, error, unique
INIT_IN = struct.Struct("=IIII")  # major, minor, max_readahead, flags
READ_IN = struct.Struct("=QQI")  # handle, offset, size (more follows)
_INIT_OUT = struct.Struct("=IIIIHHIIHHI28x")
_ATTRIBUTES = struct.Struct("=6Q10I")
_ENTRY = struct.Struct("=4Q2I")
_ATTRIBUTES_HEAD = struct.Struct("=QII")
_OPEN_OUT = struct.Struct("=QIi")
_STATFS_OUT = struct.Struct("=5Q4I24x")
_DIRENT = struct.Struct("=QQII")


def encode_init(*, max_readahead: int, flags: int, max_background: int, max_pages: int) -> bytes:
    """Answer to INIT. max_write is the least there is: nobody writes."""
    return _INIT_OUT.pack(MAJOR, MINOR, max_readahead, flags, max_background, max_background * 3 // 4, 4096, 1, max_pages, 0, 0)


def encode_attributes(node: int, size: int, mode: int) -> bytes:
    """struct fuse_attr; the times are zero, the owner root."""
    return _ATTRIBUTES.pack(node, size, -(-size // 512), 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)


def encode_entry(node: int, attributes: bytes) -> bytes:
    """Answer to LOOKUP."""
    return _ENTRY.pack(node, 0, FOREVER, FOREVER, 0, 0) + attributes


def encode_getattr(attributes: bytes) -> bytes:
    """Answer to GETATTR."""
    return _ATTRIBUTES_HEAD.pack(FOREVER, 0, 0) + attributes


def encode_open(flags: int) -> bytes:
    """Answer to OPEN and OPENDIR."""
    return _OPEN_OUT.pack(0, flags, 0)


def encode_statfs(blocks: int, files: int) -> bytes:
    """Answer to STATFS; `blocks` of 4096 bytes."""
    return _STATFS_OUT.pack(blocks, 0, 0, files, 0, 4096, 255, 4096, 0)


def encode_directory(names: list[tuple[str, int, int]], offset: int, limit: int) -> bytes:
    """Answer to READDIR: what of (name, node, DT_* type), from entry number `offset` on, fits into `limit` bytes."""
    out = b""
    for position, (name, node, kind) in enumerate(names[offset:], offset + 1):
        raw = name.encode()
        entry = _DIRENT.pack(node, position, len(raw), kind) + raw
        entry += bytes(-len(entry) % 8)
        if len(out) + len(entry) > limit:
            break
        out += entry
    return out
