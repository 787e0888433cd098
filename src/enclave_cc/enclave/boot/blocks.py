"""Reads of any offset and size from sealed blobs, in buffers made once (docs/formats/sealed.md).

Every byte that leaves here came from a block that authenticated. The files are the host's: they may be anything and
change at any time.
"""

# ruff: noqa: PTH

from __future__ import annotations

import os
import stat
import threading
from collections import OrderedDict
from collections.abc import Callable

from enclave_cc.crypto.aead import TAG_SIZE
from enclave_cc.errors import PeerError, foreign
from enclave_cc.wire.sealed.descriptor import BlobDescriptor
from enclave_cc.wire.sealed.reader import BlockOpener

MAX_READ = 256 * 1024  # the largest read: larger ones gain nothing and cost each thread their size twice
GRANULE = 512  # served sizes are rounded up to this, with zeros
CACHE_SIZE = 2 * 1024 * 1024  # plain bytes of blocks that were asked for in part
_MAX_COMPLAINTS = 1024


class BlockCache:
    """The last blocks that were asked for in part: the next read often wants the rest. Shared by all threads."""

    def __init__(self, size: int = CACHE_SIZE) -> None:
        self._blocks: OrderedDict[tuple[int, int], bytes] = OrderedDict()
        self._free = size
        self._lock = threading.Lock()

    def get(self, key: tuple[int, int]) -> bytes | None:
        with self._lock:
            found = self._blocks.get(key)
            if found is not None:
                self._blocks.move_to_end(key)
            return found

    def put(self, key: tuple[int, int], plain: bytes) -> None:
        with self._lock:
            if key in self._blocks:
                return
            self._blocks[key] = plain
            self._free -= len(plain)
            while self._free < 0:
                self._free += len(self._blocks.popitem(last=False)[1])


class Scratch:
    """The buffers of one thread: room for the blocks that the largest read touches."""

    def __init__(self, block_size: int) -> None:
        blocks = MAX_READ // block_size + 2
        self.sealed = memoryview(bytearray(blocks * (block_size + TAG_SIZE)))
        self.plain = memoryview(bytearray(blocks * block_size))


class SealedFile:
    """One blob, opened. `number` tells it apart in the cache; `log` hears once of each block that does not open.

    Raises `PeerError("seal-broken")` if the file is absent, not regular, or has another size than its blob.
    """

    def __init__(self, path: str, descriptor: BlobDescriptor, number: int, cache: BlockCache, log: Callable[[str], None]) -> None:
        self.descriptor = descriptor
        self.size = -(-descriptor.plain_size // GRANULE) * GRANULE
        self._opener = BlockOpener(descriptor)
        self._number = number
        self._cache = cache
        self._log = log
        self._complaints: set[int] = set()
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError as error:
            raise PeerError("seal-broken", f"blob {descriptor.id.hex()} cannot be opened: {error.strerror}") from error
        about = os.fstat(self._fd)
        if not stat.S_ISREG(about.st_mode) or about.st_size != descriptor.sealed_size:
            os.close(self._fd)
            found = f"{about.st_size} bytes" if stat.S_ISREG(about.st_mode) else "not a file"
            raise PeerError(
                "seal-broken", f"blob {descriptor.id.hex()} has {descriptor.sealed_size} bytes, what lies in its place is {found}"
            )

    def close(self) -> None:
        os.close(self._fd)

    def read(self, offset: int, size: int, scratch: Scratch) -> list[bytes | memoryview]:
        """`size` bytes (at most `MAX_READ`) at `offset`, fewer only at the served size's end, in pieces.

        The pieces may lie in `scratch`: use them before its next use. Raises `PeerError("seal-broken")`, having
        logged which block; `OSError` if the disk fails.
        """
        end = min(offset + min(size, MAX_READ), self.size)
        if offset >= end:
            return []
        block_size = self.descriptor.block_size
        plain_end = min(end, self.descriptor.plain_size)
        pieces: list[bytes | memoryview] = []
        if offset < plain_end:
            first, last = offset // block_size, (plain_end - 1) // block_size
            self._read_blocks(first, last, offset - first * block_size, plain_end - last * block_size, scratch, pieces)
        if end > plain_end:
            pieces.append(bytes(end - max(offset, plain_end)))
        return pieces

    def _read_blocks(
        self, first: int, last: int, start: int, stop: int, scratch: Scratch, pieces: list[bytes | memoryview]
    ) -> None:
        """Blocks `first` to `last`, from byte `start` of the one to byte `stop` of the other."""
        block_size, number = self.descriptor.block_size, self._number
        # Only the blocks at the ends can be partial, so only they can be in the cache.
        head = self._cache.get((number, first))
        if head is not None:
            pieces.append(memoryview(head)[start : stop if first == last else block_size])
            first, start = first + 1, 0
            if first > last:
                return
        tail = self._cache.get((number, last)) if head is not None or last > first else None
        whole_to = last if tail is None else last - 1
        if first <= whole_to:
            self._open_run(first, whole_to, start, stop if whole_to == last else block_size, scratch, pieces)
        if tail is not None:
            pieces.append(memoryview(tail)[:stop])

    def _open_run(self, first: int, last: int, start: int, stop: int, scratch: Scratch, pieces: list[bytes | memoryview]) -> None:
        opener, stride = self._opener, self._opener.stride
        wanted = (last - first) * stride + opener.sealed_block_size(last)
        got = os.preadv(self._fd, [scratch.sealed[:wanted]], first * stride)
        at = room = 0
        for index in range(first, last + 1):
            plain_size = self.descriptor.plain_block_size(index)
            low = start if index == first else 0
            high = stop if index == last else plain_size
            sealed = scratch.sealed[at : min(at + plain_size + TAG_SIZE, max(got, at))]
            at += stride
            try:
                if high - low == plain_size:
                    plain = scratch.plain[room : room + plain_size]
                    opener.open_into(index, sealed, plain)
                    room += plain_size
                    pieces.append(plain)
                else:
                    kept = opener.open(index, sealed)
                    self._cache.put((self._number, index), kept)
                    pieces.append(memoryview(kept)[low:high])
            except PeerError as error:
                self._complain(index, error)
                raise

    def _complain(self, index: int, error: PeerError) -> None:
        # The kernel asks again for each page of a block that failed: say it once.
        if index not in self._complaints and len(self._complaints) < _MAX_COMPLAINTS:
            self._complaints.add(index)
            self._log(f"{error.code}: {foreign(error.what)}")
