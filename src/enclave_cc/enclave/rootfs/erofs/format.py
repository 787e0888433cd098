"""EROFS on disk: the structures that we write (Linux, fs/erofs/erofs_fs.h; Documentation/filesystems/erofs.rst)."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Final

from enclave_cc.enclave.rootfs import entries as kinds
from enclave_cc.errors import PeerError

MAGIC: Final = 0xE0F5E1E2
SUPERBLOCK_OFFSET: Final = 1024
SUPERBLOCK_SIZE: Final = 128
SLOT_SIZE: Final = 32  # an inode's number (nid) is its position in units of this
DEVICE_SLOT_SIZE: Final = 128
INODE_SIZE: Final = 64  # the extended form
DIRENT_SIZE: Final = 12
NULL_ADDRESS: Final = 0xFFFFFFFF  # a chunk that is a hole

COMPAT_CHECKSUM: Final = 0x1
COMPAT_MTIME: Final = 0x2
INCOMPAT_CHUNKED_FILE: Final = 0x4
INCOMPAT_DEVICE_TABLE: Final = 0x8

# i_format: bit 0 says extended, bits 1-3 the data layout
PLAIN: Final = 1 | 0 << 1
INLINE: Final = 1 | 2 << 1
CHUNKED: Final = 1 | 4 << 1

# format, xattr count, mode, reserved, size, startblk/rdev/chunk format, ino, uid, gid, mtime s, mtime ns, nlink, reserved
INODE: Final = struct.Struct("<HHHHQIIIIqII16x")
ADDRESS_OFFSET: Final = 16
NLINK_OFFSET: Final = 44
# magic checksum compat blkszbits extslots rootnid inos epoch nsec blocks meta xattr uuid name
# incompat algorithms devices devslot dirblkbits prefixes prefix-start packed-nid rest
_SUPERBLOCK: Final = struct.Struct("<IIIBBHQQIIII16s16sIHHHBBIQ24x")
_DEVICE_SLOT: Final = struct.Struct("<64xII56x")
_XATTR_HEADER: Final = struct.Struct("<IB7x")
_XATTR_ENTRY: Final = struct.Struct("<BBH")

# kind -> (directory entry's file type, S_IFMT bits)
FILE_TYPES: Final[dict[int, int]] = {
    kinds.FILE: 1,
    kinds.DIRECTORY: 2,
    kinds.CHARACTER_DEVICE: 3,
    kinds.BLOCK_DEVICE: 4,
    kinds.FIFO: 5,
    kinds.SOCKET: 6,
    kinds.SYMLINK: 7,
}
MODE_TYPES: Final[dict[int, int]] = {
    kinds.FILE: 0o100000,
    kinds.DIRECTORY: 0o040000,
    kinds.CHARACTER_DEVICE: 0o020000,
    kinds.BLOCK_DEVICE: 0o060000,
    kinds.FIFO: 0o010000,
    kinds.SOCKET: 0o140000,
    kinds.SYMLINK: 0o120000,
}
# longest first: the ACLs are whole names, the others prefixes
_XATTR_PREFIXES: Final = (
    (b"system.posix_acl_access", 2),
    (b"system.posix_acl_default", 3),
    (b"user.", 1),
    (b"trusted.", 4),
    (b"security.", 6),
)
_MAX_XATTRS_SIZE: Final = 4 * 0xFFFF


def encode_superblock(
    block_bits: int, *, root_nid: int, inodes: int, blocks: int, devices: list[tuple[int, int]], chunked: bool
) -> bytes:
    """Superblock and device table, to stand at offset 1024, without the checksum.

    `devices` are (blocks, first block in the unified address space). Unused rows of the table are the caller's.
    """
    incompatible = (INCOMPAT_DEVICE_TABLE if devices else 0) | (INCOMPAT_CHUNKED_FILE if chunked else 0)
    superblock = _SUPERBLOCK.pack(
        MAGIC, 0, COMPAT_CHECKSUM | COMPAT_MTIME, block_bits, 0, root_nid, inodes, 0, 0, blocks, 0, 0, b"", b"",
        incompatible, 0, len(devices), (SUPERBLOCK_OFFSET + SUPERBLOCK_SIZE) // DEVICE_SLOT_SIZE, 0, 0, 0, 0,
    )  # fmt: skip
    return superblock + b"".join(_DEVICE_SLOT.pack(*device) for device in devices)


def set_checksum(image: bytearray, block_bits: int) -> None:
    """CRC32C of the rest of the superblock's block, with the field itself as zero and no final inversion."""
    size = 1 << block_bits
    end = SUPERBLOCK_OFFSET + (size - SUPERBLOCK_OFFSET if size > SUPERBLOCK_OFFSET else size)
    struct.pack_into("<I", image, SUPERBLOCK_OFFSET + 4, 0)
    struct.pack_into("<I", image, SUPERBLOCK_OFFSET + 4, crc32c(image[SUPERBLOCK_OFFSET:end]))


def crc32c(data: bytes | bytearray) -> int:
    """Castagnoli (reflected 0x82F63B78), initial value all ones, not inverted at the end. For a block, not for bulk."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _CRC32C[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return crc


def _make_crc_table() -> tuple[int, ...]:
    table = []
    for crc in range(256):
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)  # noqa: PLW2901
        table.append(crc)
    return tuple(table)


_CRC32C: Final = _make_crc_table()


def encode_rdev(major: int, minor: int) -> int:
    """Linux's 32-bit device number (new_encode_dev): 12 bits major, 20 bits minor."""
    if major >= 1 << 12 or minor >= 1 << 20:
        raise PeerError("layer-broken", f"device number {major}:{minor}")
    return (minor & 0xFF) | major << 8 | (minor & ~0xFF) << 12


def encode_xattrs(xattrs: Mapping[bytes, bytes]) -> bytes:
    """The inline attribute area of an inode: header and entries, in name order; b"" if there are none."""
    if not xattrs:
        return b""
    parts = [_XATTR_HEADER.pack(0, 0)]
    for name in sorted(xattrs):
        value = xattrs[name]
        prefix, index = next(((p, i) for p, i in _XATTR_PREFIXES if name.startswith(p)), (b"", 0))
        rest = name[len(prefix) :]
        # The ACLs' names are complete; all others need a name after the prefix. 255 is XATTR_NAME_MAX.
        if not index or bool(rest) == (index in (2, 3)) or len(name) > 255 or len(value) > 0xFFFF:
            raise PeerError("layer-broken", "an extended attribute that Linux does not take")
        size = _XATTR_ENTRY.size + len(rest) + len(value)
        parts += (_XATTR_ENTRY.pack(len(rest), index, len(value)), rest, value, bytes(-size % 4))
    area = b"".join(parts)
    if len(area) > _MAX_XATTRS_SIZE:
        raise PeerError("layer-broken", "too many extended attributes on one file")
    return area


def count_xattrs(area: bytes) -> int:
    """i_xattr_icount of an attribute area."""
    return 1 + (len(area) - _XATTR_HEADER.size) // 4 if area else 0


def split_names(lengths: list[int], block_size: int) -> list[tuple[int, int, int]]:
    """Directory blocks for sorted names of these lengths: (first, end, bytes used) per block."""
    blocks = []
    first = used = 0
    for index, length in enumerate(lengths):
        if used + DIRENT_SIZE + length > block_size:
            blocks.append((first, index, used))
            first, used = index, 0
        used += DIRENT_SIZE + length
    blocks.append((first, len(lengths), used))
    return blocks


def encode_dirents(names: list[bytes], nids: list[int], types: list[int]) -> bytes:
    """One directory block: entries, then names; not padded."""
    flat: list[int] = []
    at = DIRENT_SIZE * len(names)
    for name, nid, kind in zip(names, nids, types, strict=True):
        flat += (nid, at, kind, 0)
        at += len(name)
    return struct.pack("<" + "QHBB" * len(names), *flat) + b"".join(names)
