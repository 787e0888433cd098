"""Reads a sealed blob of the node cache back, inside the agent."""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType

from enclave_cc.enclave.rootfs import cache_files
from enclave_cc.wire.sealed.descriptor import BlobDescriptor
from enclave_cc.wire.sealed.reader import BlockOpener


class SealedReader:
    """The plain bytes of the blob in the cache at `directory`. Raises `EnvironmentFault` if its file is gone."""

    def __init__(self, directory: Path, descriptor: BlobDescriptor) -> None:
        self._opener = BlockOpener(descriptor)
        self._path = directory / cache_files.BLOBS / descriptor.file_name
        self._held: tuple[int, bytes] = (-1, b"")  # the last block: reads are mostly in order
        try:
            self._fd = os.open(self._path, os.O_RDONLY | cache_files.OPEN_HOSTS)
        except OSError as error:
            raise cache_files.fault(error, self._path) from error

    def __enter__(self) -> SealedReader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        os.close(self._fd)

    def read(self, offset: int, length: int) -> bytes:
        """Up to `length` bytes at `offset`; fewer only at the blob's end. Raises `PeerError("seal-broken")`."""
        descriptor = self._opener.descriptor
        end = min(offset + length, descriptor.plain_size)
        parts: list[bytes] = []
        while offset < end:
            index, start = divmod(offset, descriptor.block_size)
            part = self._block(index)[start : start + end - offset]
            parts.append(part)
            offset += len(part)
        return b"".join(parts)

    def _block(self, index: int) -> bytes:
        if self._held[0] != index:
            try:
                sealed = os.pread(self._fd, self._opener.sealed_block_size(index), index * self._opener.stride)
            except OSError as error:
                raise cache_files.fault(error, self._path) from error
            self._held = (index, self._opener.open(index, sealed))
        return self._held[1]
