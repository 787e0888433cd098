"""Writes one sealed blob into the node cache (docs/formats/sealed.md, sections Blob and Node cache).

The file has no name until `finish`: whatever kills the process before, nothing is left on the disk.
"""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType

from enclave_cc.crypto.aead import TAG_SIZE
from enclave_cc.enclave.rootfs import cache_files
from enclave_cc.wire.sealed import block
from enclave_cc.wire.sealed.descriptor import BlobDescriptor
from enclave_cc.wire.sealed.sealer import BlockSealer

_BATCH = 16  # blocks a write(2)


class SealedWriter:
    """A blob being written under `directory`/blobs. Memory: 17 blocks. Not thread-safe.

    Use as a context manager: leaving it without `finish` throws the blob away. Raises `EnvironmentFault`:
    "disk-full", or "environment" for other failures of the file system.
    """

    def __init__(self, directory: Path, role: block.Role, *, block_size: int = block.BLOCK_SIZE) -> None:
        self._blobs = directory / cache_files.BLOBS
        self._sealer = BlockSealer(role, block_size=block_size)
        self._block_size = block_size
        self._pending = bytearray(block_size)
        self._filled = 0
        self._out = memoryview(bytearray(_BATCH * (block_size + TAG_SIZE)))
        self._out_size = 0
        self._fd = -1
        try:
            self._blobs.mkdir(mode=0o755, parents=True, exist_ok=True)
            self._fd = os.open(self._blobs, os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise cache_files.fault(error, self._blobs) from error

    def __enter__(self) -> SealedWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.abort()

    @property
    def id(self) -> bytes:
        return self._sealer.id

    def write(self, chunk: bytes | bytearray | memoryview) -> None:
        """Appends plaintext. Keeps no reference to `chunk`."""
        view = memoryview(chunk)
        size = self._block_size
        # A block is sealed only when a byte behind it exists: the last one is sealed by `finish`, as last.
        if self._filled:
            take = min(size - self._filled, len(view))
            self._pending[self._filled : self._filled + take] = view[:take]
            self._filled += take
            view = view[take:]
            if not len(view):
                return
            self._seal(self._pending, last=False)
            self._filled = 0
        while len(view) > size:
            self._seal(view[:size], last=False)
            view = view[size:]
        self._pending[: len(view)] = view
        self._filled = len(view)

    def finish(self) -> BlobDescriptor:
        """Seals the rest and gives the file its name. The blob is complete on return, and for good."""
        self._seal(memoryview(self._pending)[: self._filled], last=True)
        self._flush()
        descriptor = self._sealer.finish()
        name = self._blobs / descriptor.file_name
        try:
            # Naming an O_TMPFILE file: linkat(2) with AT_SYMLINK_FOLLOW, which Python takes when a dir fd is given.
            directory = os.open("/proc/self/fd", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.link(str(self._fd), name, src_dir_fd=directory, follow_symlinks=True)
            finally:
                os.close(directory)
        except OSError as error:
            raise cache_files.fault(error, self._blobs) from error
        self.abort()
        return descriptor

    def abort(self) -> None:
        """Closes the file; without a name it is gone. Safe to call again, and after `finish`."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def _seal(self, plain: bytearray | memoryview, *, last: bool) -> None:
        if self._fd < 0:
            raise ValueError("the blob is finished or given up")
        end = self._out_size + len(plain) + TAG_SIZE
        self._sealer.seal_into(plain, self._out[self._out_size : end], last=last)
        self._out_size = end
        if end + self._block_size + TAG_SIZE > len(self._out):
            self._flush()

    def _flush(self) -> None:
        view = self._out[: self._out_size]
        try:
            while len(view):
                view = view[os.write(self._fd, view) :]
        except OSError as error:
            self.abort()
            raise cache_files.fault(error, self._blobs) from error
        self._out_size = 0
