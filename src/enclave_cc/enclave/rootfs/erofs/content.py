"""Where a file's bytes are: in place in a layer, or, where blocks cannot point there, copied to the spill stream.

A tar body begins on 512 bytes, so with 512-byte blocks nearly every file is used in place. Copied are only segments of
sparse files that lie off that grid, and the last block of a stream that was cut short of its padding. With larger
blocks (a kernel that wants 4096) most files are copied; the tree is the same. A last block used in place holds nothing but
zeros behind the file, because a memory mapping shows all of it.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from itertools import chain
from typing import Final, Protocol

from enclave_cc.enclave.rootfs.entries import Extent
from enclave_cc.enclave.rootfs.erofs.format import NULL_ADDRESS
from enclave_cc.errors import PeerError

MAX_SPILL: Final = 4 << 30
MAX_CHUNKS: Final = 1 << 20  # per file: 4 MiB of map
MAX_ALL_CHUNKS: Final = 1 << 24  # a header of 1 KiB can ask for a map of 4 MiB; not every header of a layer
_MAX_COPIED_CHUNK: Final = 4 << 20  # such a chunk is built in memory
_MAX_COPIED_CHUNKS: Final = 1 << 16  # per file
_MAX_CHUNK_BITS: Final = 20  # of blocks; 512 MiB with 512-byte blocks
TAR_BLOCK: Final = 512
_COPY_SIZE: Final = 1 << 20
# Layers stand here in the unified address space, behind any metadata there can be, so that addresses do not depend on it.
FIRST_DEVICE_BLOCK: Final = 1 << 24
_END_OF_ADDRESSES: Final = NULL_ADDRESS


class Spill(Protocol):
    """The writer's way to move content that cannot be mapped in place."""

    def read_layer(self, layer: int, offset: int, length: int) -> bytes:
        """Exactly `length` bytes of the layer's plain stream."""

    def write(self, data: bytes) -> None:
        """Append to the spill stream, which is the last device if anything was written."""


class Content:
    """Addresses file bodies, in blocks of the unified address space. `layer_sizes` in bytes."""

    __slots__ = ("_bits", "_block", "_chunks", "_limits", "_spill", "_spill_at", "devices", "spill_size", "starts")

    def __init__(self, layer_sizes: Sequence[int], block_bits: int, spill: Spill | None) -> None:
        self._bits = block_bits
        self._block = 1 << block_bits
        self._spill = spill
        # What follows the last whole block cannot be read through a device: the kernel asks for whole blocks.
        self._limits = [size & -self._block for size in layer_sizes]
        self.starts: list[int] = []
        self.devices: list[tuple[int, int]] = []  # (blocks, first block), as the device table wants them
        at = FIRST_DEVICE_BLOCK
        for limit in self._limits:
            self.starts.append(at)
            self.devices.append((limit >> block_bits, at))
            at += limit >> block_bits
        self._check_address(at)
        self._chunks = 0
        self._spill_at = at
        self.spill_size = 0

    def _check_address(self, block: int) -> None:
        if block >= _END_OF_ADDRESSES:
            raise PeerError("unsupported-image", "the image's layers are larger than 2^32 blocks")

    def finish(self) -> list[tuple[int, int]]:
        """The device table, with the spill as its last row if there is one."""
        if self.spill_size:
            self.devices.append((self.spill_size >> self._bits, self._spill_at))
        return self.devices

    def is_in_place(self, layer: int, offset: int, length: int, dirty: bool) -> bool:
        """Whether whole blocks of the layer hold these bytes, and then zeros; `dirty` says that its padding is none."""
        grid = self._block - 1
        if offset & grid or offset + (length + grid & ~grid) > self._limits[layer]:
            return False
        # Up to the next 512 there is padding, behind that another member.
        return not length & grid if dirty else not (length + TAR_BLOCK - 1 & -TAR_BLOCK) & grid

    def address(self, layer: int, extent: Extent, dirty: bool) -> int:
        """First block of a file that is one extent: in place, or copied."""
        offset, length, _ = extent
        if self.is_in_place(layer, offset, length, dirty):
            return self.starts[layer] + (offset >> self._bits)
        first = self._next_spill_block()
        for at in range(offset, offset + length, _COPY_SIZE):
            self._append(self._read(layer, at, min(_COPY_SIZE, offset + length - at)))
        self._append(bytes(-length % self._block))
        return first

    def chunks(self, layer: int, extents: Sequence[Extent], size: int, dirty: bool) -> tuple[int, bytes]:
        """(chunk format, block map) of a sparse file: the chunk size that costs least in map and copies."""
        extents = _join(extents, size)
        candidates = [
            (cost, bits)
            for bits in range(_MAX_CHUNK_BITS + 1)
            if (cost := self._cost(layer, extents, size, bits, dirty)) is not None
        ]
        if not candidates:
            raise PeerError("unsupported-image", "a sparse file is too large")
        _, bits = min(candidates)
        return bits, self._map(layer, extents, size, bits, dirty)

    def _is_chunk_in_place(self, layer: int, extent: Extent, start: int, end: int, dirty: bool) -> bool:
        """Whether the extent alone covers the file's bytes from `start` to `end`, and does so on the layer's grid."""
        offset, length, at = extent
        return at <= start and end <= at + length and self.is_in_place(layer, offset + start - at, end - start, dirty)

    def _cost(self, layer: int, extents: Sequence[Extent], size: int, bits: int, dirty: bool) -> int | None:
        chunk = self._block << bits
        count = -(-size // chunk)
        if count > MAX_CHUNKS:
            return None
        copied = 0
        for extent in extents:
            offset, length, at = extent
            first, last = at // chunk, (at + length - 1) // chunk
            if (offset - at) & (self._block - 1):
                copied += last - first + 1
                continue
            copied += not self._is_chunk_in_place(layer, extent, first * chunk, min((first + 1) * chunk, size), dirty)
            if last != first:
                copied += not self._is_chunk_in_place(layer, extent, last * chunk, min((last + 1) * chunk, size), dirty)
        if copied and (chunk > _MAX_COPIED_CHUNK or copied > _MAX_COPIED_CHUNKS or copied * chunk > MAX_SPILL):
            return None
        return 4 * count + copied * chunk

    def _map(self, layer: int, extents: Sequence[Extent], size: int, bits: int, dirty: bool) -> bytes:
        chunk = self._block << bits
        count = -(-size // chunk)
        self._chunks += count
        if self._chunks > MAX_ALL_CHUNKS:
            raise PeerError("unsupported-image", "the sparse files of the image are too large together")
        table = [NULL_ADDRESS] * count
        copies: dict[int, list[Extent]] = {}
        for extent in extents:
            offset, length, at = extent
            whole, end_of_whole = -(-at // chunk), (at + length) // chunk  # chunks that the extent fills
            first = offset + whole * chunk - at
            if whole < end_of_whole and self.is_in_place(layer, first, (end_of_whole - whole) * chunk, dirty):
                block = self.starts[layer] + (first >> self._bits)
                table[whole:end_of_whole] = range(block, block + (end_of_whole - whole << bits), 1 << bits)
            else:
                end_of_whole = whole
            ends = (range(at // chunk, whole), range(end_of_whole, (at + length - 1) // chunk + 1))
            for index in chain(*ends):
                start, end = index * chunk, min((index + 1) * chunk, size)
                if self._is_chunk_in_place(layer, extent, start, end, dirty):
                    table[index] = self.starts[layer] + (offset + start - at >> self._bits)
                else:
                    low, high = max(start, at), min(end, at + length)
                    copies.setdefault(index, []).append((offset + low - at, high - low, low - start))
        for index, parts in copies.items():
            body = bytearray(-(-min(chunk, size - index * chunk) // self._block) * self._block)
            for offset, length, at in parts:
                body[at : at + length] = self._read(layer, offset, length)
            table[index] = self._next_spill_block()
            self._append(bytes(body))
        return struct.pack(f"<{len(table)}I", *table)

    # spilling

    def _next_spill_block(self) -> int:
        block = self._spill_at + (self.spill_size >> self._bits)
        self._check_address(block)
        return block

    def _read(self, layer: int, offset: int, length: int) -> bytes:
        if self._spill is None:
            raise PeerError("unsupported-image", "a file's content is not on block boundaries")
        data = self._spill.read_layer(layer, offset, length)
        if len(data) != length:
            raise PeerError("layer-broken", "a file's body ends before its size")
        return data

    def _append(self, data: bytes) -> None:
        self.spill_size += len(data)
        if self.spill_size > MAX_SPILL:
            raise PeerError("unsupported-image", "too much content is not on block boundaries")
        if self._spill is not None and data:
            self._spill.write(data)


def _join(extents: Sequence[Extent], size: int) -> list[Extent]:
    """Neighbours in file and stream as one; all in order and within the file."""
    joined: list[Extent] = []
    end = 0
    for offset, length, at in extents:
        if not length:
            continue
        if at < end or at + length > size:
            raise PeerError("layer-broken", "the segments of a sparse file are not in order")
        end = at + length
        if joined:
            last_offset, last_length, last_at = joined[-1]
            if last_offset + last_length == offset and last_at + last_length == at:
                joined[-1] = (last_offset, last_length + length, last_at)
                continue
        joined.append((offset, length, at))
    return joined
