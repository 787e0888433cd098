"""Geometry, nonce and associated data of sealed blocks (docs/formats/sealed.md, section Blob)."""

from __future__ import annotations

from enum import Enum

from enclave_cc.crypto.aead import TAG_SIZE

BLOCK_SIZE = 64 * 1024  # measured: docs/adr/0004-sealed-blobs.md
MIN_BLOCK_SIZE = 4096
MAX_BLOCK_SIZE = 1024 * 1024
MAX_PLAIN_SIZE = 1 << 46
ID_SIZE = 16
KEY_SIZE = 32

_MAGIC = b"enclave-cc/sealed/1"


class Role(Enum):
    """What a blob holds; part of what each block authenticates."""

    LAYER = 1
    METADATA = 2
    SPILL = 3


def count_blocks(plain_size: int, block_size: int) -> int:
    """Blocks of a blob; an empty blob has one."""
    return max(1, -(-plain_size // block_size))


def sealed_size(plain_size: int, block_size: int) -> int:
    """Bytes of the blob's file."""
    return plain_size + TAG_SIZE * count_blocks(plain_size, block_size)


def make_nonce(index: int) -> bytes:
    """12 bytes. Unique under the blob's key, because each index is sealed once and each key serves one blob."""
    return index.to_bytes(12, "big")


def aad_prefix(role: Role, blob_id: bytes) -> bytes:
    """The part of the associated data that all blocks of a blob share (36 bytes)."""
    return b"%b%c%b" % (_MAGIC, role.value, blob_id)


def make_aad(prefix: bytes, index: int, *, last: bool) -> bytes:
    """Associated data of block `index` (45 bytes)."""
    return b"%b%b%c" % (prefix, index.to_bytes(8, "big"), last)
