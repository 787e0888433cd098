"""From a rootfs descriptor to a mounted root.

`RootfsMounter` is the interface; a LibOS with an encrypted file system of its own implements it otherwise. This one,
for the simulated platform, lets the host's kernel do it: a FUSE server decrypts the blobs, EROFS is mounted over the
files it serves, and overlayfs puts a writable layer in memory on top.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from typing import Protocol

from enclave_cc.enclave.boot import filesystem, log, syscalls
from enclave_cc.enclave.boot.blob_server import BlobServer
from enclave_cc.errors import EnclaveCcError, EnvironmentFault
from enclave_cc.wire.sealed.rootfs import RootfsDescriptor

_DATA_ONLY = syscalls.MOUNT_ATTR_NOSUID | syscalls.MOUNT_ATTR_NODEV | syscalls.MOUNT_ATTR_NOEXEC


class RootfsMounter(Protocol):
    """Mounts one root file system. `server_pid` is the process it depends on, if any."""

    @property
    def server_pid(self) -> int | None: ...

    @property
    def failure(self) -> EnclaveCcError | None:
        """Why files of the mounted root could not be read, once one could not."""

    def mount(self, rootfs: RootfsDescriptor, *, upper_size: int, deadline: float) -> str:
        """The path of the mounted root, ready to be entered. Raises `PeerError("seal-broken")`, `EnvironmentFault`."""

    def close(self) -> None:
        """Unmounts and ends everything."""


class KernelMounter:
    """EROFS over FUSE in `work`, an empty directory, from the blobs in `blobs`."""

    def __init__(self, blobs: str, work: str) -> None:
        self._blobs, self._work = blobs, work
        self._server: BlobServer | None = None
        self._mounted = False

    @property
    def server_pid(self) -> int | None:
        return None if self._server is None else self._server.pid

    @property
    def failure(self) -> EnclaveCcError | None:
        return None if self._server is None else self._server.failure

    def mount(self, rootfs: RootfsDescriptor, *, upper_size: int, deadline: float) -> str:
        """See `RootfsMounter.mount`. `upper_size` bounds what the workload may write, in bytes; 0: half of the memory.

        `deadline` is in seconds. The keys are in the server's memory only when this returns and the caller forgets
        `rootfs`.
        """
        try:
            self._make_work()
            self._server = BlobServer.start(rootfs, self._blobs, f"{self._work}/blobs", deadline=deadline)
            # A mount waits for the server's answers where no signal reaches; the server's death ends the wait.
            with _deadline(deadline, self._server):
                self._mount_image(rootfs)
                return self._mount_writable(upper_size)
        except OSError as error:
            if self.failure is not None:
                raise self.failure from error
            about = f"{error.filename}: " if error.filename else ""
            raise EnvironmentFault("mount-failed", f"{about}{error.strerror}") from error

    def close(self) -> None:
        if self._server is not None:
            self._server.stop()
            self._server = None
        if self._mounted:
            self._mounted = False
            with contextlib.suppress(OSError):
                syscalls.umount(self._work, syscalls.MNT_DETACH)

    def _make_work(self) -> None:
        try:
            private = syscalls.create_filesystem("tmpfs", [("source", "boot"), ("mode", "700"), ("size", "64k")], _DATA_ONLY)
            _attach(private, self._work)
        except FileNotFoundError as error:
            raise EnvironmentFault("mount-failed", f"the bundle has no directory {self._work}") from error
        self._mounted = True
        for name in ("blobs", "image", "upper", "root"):
            os.mkdir(f"{self._work}/{name}", 0o700)

    def _mount_image(self, rootfs: RootfsDescriptor) -> None:
        names = [name for name, _ in rootfs.named_blobs]
        options: list[tuple[str, str | None]] = [("source", f"{self._work}/blobs/{names[0]}"), ("ro", None)]
        options += [("device", f"{self._work}/blobs/{name}") for name in names[1:]]
        image = syscalls.create_filesystem("erofs", options, syscalls.MOUNT_ATTR_RDONLY)
        _attach(image, f"{self._work}/image")

    def _mount_writable(self, upper_size: int) -> str:
        image, upper, root = (f"{self._work}/{name}" for name in ("image", "upper", "root"))
        size = str(upper_size) if upper_size else "50%"
        memory, stays = filesystem.create_tmpfs([("source", "upper"), ("size", size), ("mode", "700")], 0)
        if not stays:
            log.write("warning", "this kernel has no tmpfs option noswap: what the workload writes may reach the host's swap")
        _attach(memory, upper)
        os.mkdir(f"{upper}/work", 0o700)
        os.mkdir(f"{upper}/files", 0o755)
        _copy_attributes(image, f"{upper}/files")
        options = [("source", "root"), ("lowerdir", image), ("upperdir", f"{upper}/files"), ("workdir", f"{upper}/work")]
        _attach(syscalls.create_filesystem("overlay", options), root)
        return root


def _copy_attributes(source: str, target: str) -> None:
    """The overlay shows the upper directory's attributes for its root: let them be the image's."""
    for name in os.listxattr(source):
        with contextlib.suppress(OSError):  # one that a tmpfs does not keep
            os.setxattr(target, name, os.getxattr(source, name))
    about = os.stat(source)
    os.chown(target, about.st_uid, about.st_gid)
    os.chmod(target, about.st_mode & 0o7777)
    os.utime(target, ns=(about.st_atime_ns, about.st_mtime_ns))


def _attach(mount_fd: int, path: str) -> None:
    try:
        syscalls.attach_mount(mount_fd, path)
    finally:
        os.close(mount_fd)


@contextlib.contextmanager
def _deadline(seconds: float, server: BlobServer) -> Iterator[None]:
    late = threading.Event()

    def end() -> None:
        late.set()
        server.kill()

    timer = threading.Timer(seconds, end)
    timer.start()
    try:
        yield
    except OSError as error:
        if late.is_set():
            raise EnvironmentFault("deadline", "the encrypted rootfs did not mount in time") from error
        raise
    finally:
        timer.cancel()
        timer.join()
