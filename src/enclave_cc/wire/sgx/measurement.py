"""The measurement log: MRENCLAVE as ECREATE, EADD and EEXTEND build it.

Intel SDM volume 3D, chapter 40 (ECREATE, EADD, EEXTEND): SHA-256 over 64-byte records, each EEXTEND record
followed by the 256 bytes that it measures.
"""

from __future__ import annotations

import hashlib
import struct
from enum import IntFlag

PAGE_SIZE = 4096
CHUNK_SIZE = 256


class PageFlag(IntFlag):
    """SECINFO.FLAGS: permissions and, in bits 8-15, the page type."""

    R = 0x1
    W = 0x2
    X = 0x4
    TCS = 0x100
    REG = 0x200


class MeasurementLog:
    """One enclave being built. Feed the pages in layout order, then read `mr_enclave`."""

    __slots__ = ("_hash", "_size")

    def __init__(self, *, size: int, ssa_frame_size: int) -> None:
        """ECREATE: `size` in bytes, a power of two as SECS.SIZE must be; `ssa_frame_size` in pages."""
        if size < 2 * PAGE_SIZE or size & (size - 1):
            raise ValueError("an enclave's size is a power of two of at least two pages")
        self._size = size
        self._hash = hashlib.sha256(struct.pack("<8sIQ44x", b"ECREATE", ssa_frame_size, size))

    def add_page(self, offset: int, flags: PageFlag) -> None:
        """EADD: a page at `offset` bytes; its content is not measured by this."""
        if offset % PAGE_SIZE or not 0 <= offset < self._size:
            raise ValueError("a page lies page-aligned within the enclave")
        self._hash.update(struct.pack("<8sQQ40x", b"EADD", offset, flags))

    def extend_page(self, offset: int, content: bytes) -> None:
        """EEXTEND, sixteen times: the whole content of one page."""
        if len(content) != PAGE_SIZE:
            raise ValueError("a page has 4096 bytes")
        records = []
        for start in range(0, PAGE_SIZE, CHUNK_SIZE):
            records.append(struct.pack("<8sQ48x", b"EEXTEND", offset + start))
            records.append(content[start : start + CHUNK_SIZE])
        self._hash.update(b"".join(records))

    def mr_enclave(self) -> bytes:
        """32 bytes; further pages may follow, the log goes on."""
        return self._hash.copy().digest()
