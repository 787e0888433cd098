"""Serves decrypted blobs as files, so that the kernel can mount EROFS over them. The simulated back-end's way only:
plaintext lies in the page cache of the kernel, which on hardware is the adversary's (docs/threat-model.md).

Speaks to /dev/fuse itself: a library would be a native dependency in the measured program for what is a page of
structures (docs/adr/0004-sealed-blobs.md). The directory is flat, read-only and never changes.
"""

# ruff: noqa: PTH

from __future__ import annotations

import contextlib
import errno
import os
import stat
import threading
from collections.abc import Callable, Sequence

from enclave_cc.enclave.boot import fuse_messages as messages
from enclave_cc.enclave.boot import syscalls
from enclave_cc.enclave.boot.blocks import MAX_READ, BlockCache, Scratch, SealedFile
from enclave_cc.errors import EnvironmentFault, PeerError, foreign
from enclave_cc.wire.sealed.descriptor import BlobDescriptor

MAX_THREADS = 4
_REQUEST_SIZE = 64 * 1024  # the kernel wants at least 8192; requests without data are far smaller
_MAX_BACKGROUND = 64
_PAGE = 4096
_READ_AHEAD = 1024  # KiB: several reads are then under way at once; the kernel's default is 128
_MS_RDONLY = 1

_Pieces = Sequence[bytes | bytearray | memoryview]


class BlobFileSystem:
    """`blobs`: (name in the directory, path of the sealed file, descriptor). `log` hears of each block that is broken.

    `mount`, then fork; the child calls `serve`, the parent `close`, and every other child that does not exec closes
    its copy too: while any copy of the descriptor is open the mount waits for answers, once the last is gone (by
    SIGKILL too) reads fail with ENOTCONN at once.

    Raises `PeerError("seal-broken")` for a file that cannot be its blob.
    """

    def __init__(self, blobs: Sequence[tuple[str, str, BlobDescriptor]], mountpoint: str, log: Callable[[str], None]) -> None:
        self._mountpoint = mountpoint
        self._log = log
        self._device = -1
        self._files: list[SealedFile] = []
        self._names = {name: node for node, (name, _, _) in enumerate(blobs, messages.ROOT + 1)}
        self._block_size = max(descriptor.block_size for _, _, descriptor in blobs)
        cache = BlockCache()
        try:
            for number, (_, path, descriptor) in enumerate(blobs):
                self._files.append(SealedFile(path, descriptor, number, cache, log))
        except PeerError:
            self.close()
            raise

    def mount(self) -> None:
        """Mounts at the mount point; the kernel's first requests wait for `serve`. Raises `EnvironmentFault("mount-failed")`."""
        place = os.path.realpath(self._mountpoint)  # now: afterwards it would wait for the server
        try:
            self._device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
            # Without allow_other the kernel lets nobody but this user's processes in; EROFS keeps its files open.
            options = f"fd={self._device},rootmode=40000,user_id={os.getuid()},group_id={os.getgid()},max_read={MAX_READ}"
            flags = _MS_RDONLY | syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_NOEXEC
            syscalls.mount("enclave-cc", self._mountpoint, "fuse", flags, options)
        except OSError as error:
            raise EnvironmentFault("mount-failed", f"FUSE at {self._mountpoint}: {error.strerror}") from error
        _raise_read_ahead(place)

    def serve(self) -> None:
        """Answers the kernel until the file system is unmounted. Uses two to `MAX_THREADS` threads, this one among them."""
        count = min(MAX_THREADS, max(2, len(os.sched_getaffinity(0))))
        threads = [threading.Thread(target=self._work, name=f"fuse-{n}", daemon=True) for n in range(1, count)]
        for thread in threads:
            thread.start()
        self._work()
        for thread in threads:
            thread.join()

    def unmount(self) -> None:
        """Takes the mount away; what holds it open (EROFS) keeps it alive. Raises `EnvironmentFault("mount-failed")`."""
        try:
            syscalls.umount(self._mountpoint, syscalls.MNT_DETACH)
        except OSError as error:
            raise EnvironmentFault("mount-failed", f"FUSE at {self._mountpoint}: {error.strerror}") from error

    def close(self) -> None:
        """Closes this process's descriptors. In the last process that has them this ends the file system."""
        device, self._device = self._device, -1
        if device >= 0:
            os.close(device)
        files, self._files = self._files, []
        for file in files:
            file.close()

    def _work(self) -> None:
        request = bytearray(_REQUEST_SIZE)
        view = memoryview(request)
        scratch = Scratch(self._block_size)
        while True:
            try:
                size = os.readv(self._device, [request])
            except OSError as error:
                if error.errno in (errno.EINTR, errno.EAGAIN, errno.ENOENT):  # ENOENT: interrupted before we took it
                    continue
                if error.errno not in (errno.ENODEV, errno.ECONNABORTED):
                    self._log(f"environment: /dev/fuse fails: {error.strerror}")
                return
            if not self._answer(view[:size], scratch):
                return

    def _answer(self, request: memoryview, scratch: Scratch) -> bool:
        """Answers one request; False when the kernel says goodbye."""
        if len(request) < messages.HEADER.size:
            return True  # no kernel sends this, and there is nobody to answer
        operation: int
        _, operation, unique, node, *_ = messages.HEADER.unpack_from(request)
        body = request[messages.HEADER.size :]
        pieces: _Pieces = ()
        code = 0
        if operation in (messages.FORGET, messages.BATCH_FORGET):
            return True  # these have no answer
        try:
            if operation == messages.READ:
                _, offset, size = messages.READ_IN.unpack_from(body)
                pieces = self._file(node).read(offset, size, scratch)
            else:
                pieces = (self._dispatch(operation, node, body),)
        except PeerError:
            code = errno.EIO  # the file has logged it
        except OSError as error:
            code = error.errno or errno.EIO
            if code == errno.EIO:
                self._log(f"environment: the sealed blobs cannot be read: {foreign(error.strerror)}")
        except Exception as error:  # noqa: BLE001  (the mount must outlive a bug)
            self._log(f"internal: FUSE operation {operation}: {type(error).__name__}")
            code = errno.EIO
        if code:
            pieces = ()
        length = messages.REPLY.size + sum(map(len, pieces))
        try:
            os.writev(self._device, [messages.REPLY.pack(length, -code, unique), *pieces])
        except OSError as error:
            if error.errno != errno.ENOENT:  # the asker was interrupted and is gone
                return error.errno != errno.ENODEV
        return operation != messages.DESTROY

    def _dispatch(self, operation: int, node: int, body: memoryview) -> bytes:
        """The answer to all that is no READ. Raises `OSError` with the number for the asker."""
        if operation == messages.LOOKUP:
            found = self._names.get(bytes(body).split(b"\0", 1)[0].decode("utf-8", "replace")) if node == messages.ROOT else None
            if found is None:
                raise OSError(errno.ENOENT, "no such blob")
            return messages.encode_entry(found, self._attributes(found))
        if operation == messages.GETATTR:
            return messages.encode_getattr(self._attributes(node))
        if operation == messages.OPEN:
            return messages.encode_open(messages.KEEP_CACHE)
        if operation == messages.OPENDIR:
            return messages.encode_open(0)
        if operation == messages.READDIR:
            _, offset, size = messages.READ_IN.unpack_from(body)
            names = [(".", messages.ROOT, stat.S_IFDIR >> 12), ("..", messages.ROOT, stat.S_IFDIR >> 12)]
            names += [(name, number, stat.S_IFREG >> 12) for name, number in self._names.items()]
            return messages.encode_directory(names, offset, size)
        if operation == messages.STATFS:
            return messages.encode_statfs(sum(-(-file.size // _PAGE) for file in self._files), len(self._files))
        if operation in (messages.RELEASE, messages.RELEASEDIR, messages.FLUSH, messages.DESTROY):
            return b""
        if operation == messages.INIT:
            return self._negotiate(body)
        # INTERRUPT too: the kernel then stops sending it. Reads are short; there is nothing to interrupt.
        raise OSError(errno.ENOSYS, "not a file system of that kind")

    def _negotiate(self, body: memoryview) -> bytes:
        major, minor, max_readahead, offered = messages.INIT_IN.unpack_from(body)
        if (major, minor) < (messages.MAJOR, messages.OLDEST_MINOR):
            self._log(f"environment: this kernel's FUSE is {major}.{minor}; 7.28 (Linux 4.20) is needed")
            raise OSError(errno.EPROTO, "FUSE version")
        wanted = messages.ASYNC_READ | messages.PARALLEL_DIROPS | messages.MAX_PAGES
        return messages.encode_init(
            max_readahead=max(max_readahead, MAX_READ),
            flags=wanted & offered,
            max_background=_MAX_BACKGROUND,
            max_pages=MAX_READ // _PAGE,
        )

    def _file(self, node: int) -> SealedFile:
        if not 0 <= node - messages.ROOT - 1 < len(self._files):
            raise OSError(errno.ENOENT, "no such blob")
        return self._files[node - messages.ROOT - 1]

    def _attributes(self, node: int) -> bytes:
        if node == messages.ROOT:
            return messages.encode_attributes(node, 0, stat.S_IFDIR | 0o500)
        return messages.encode_attributes(node, self._file(node).size, stat.S_IFREG | 0o400)


def _raise_read_ahead(mountpoint: str) -> None:
    """Cold reads gain a quarter. Needs a writable /sys; does nothing without.

    The device number comes from mountinfo, because stat(2) would wait for a server that does not run yet.
    """
    with contextlib.suppress(OSError):
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as mounts:
            devices = [fields[2] for fields in map(str.split, mounts) if fields[4] == mountpoint]
        if not devices:
            return
        with open(f"/sys/class/bdi/{devices[-1]}/read_ahead_kb", "w", encoding="ascii") as setting:
            setting.write(str(_READ_AHEAD))
