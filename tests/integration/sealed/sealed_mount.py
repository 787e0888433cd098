"""An image in a node cache, served by a forked FUSE server and mounted as boot does it."""

from __future__ import annotations

import hashlib
import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from enclave_cc.crypto.secret import Secret
from enclave_cc.enclave.boot import syscalls
from enclave_cc.enclave.boot.fuse import BlobFileSystem
from enclave_cc.enclave.image.layer import ingest_layer
from enclave_cc.enclave.rootfs.build import build_rootfs
from enclave_cc.enclave.rootfs.cache import NodeCache
from enclave_cc.enclave.rootfs.layer import Layer
from enclave_cc.wire.sealed.descriptor import BlobDescriptor
from enclave_cc.wire.sealed.rootfs import RootfsDescriptor

SEAL_KEY = Secret(bytes(16))
CHUNK = 256 * 1024


def ingest_tar(cache: NodeCache, tar: bytes) -> Layer:
    name = "sha256:" + hashlib.sha256(tar).hexdigest()

    def ingest() -> Layer:
        return ingest_layer(
            (tar[at : at + CHUNK] for at in range(0, len(tar), CHUNK)),
            digest=name,
            size=len(tar),
            diff_id=name,
            media_type="application/vnd.oci.image.layer.v1.tar",
            cipher=None,
            directory=cache.directory,
            progress=lambda done: None,
        )

    return cache.get_layer(name, name, ingest, patience=60)


@dataclass
class Site:
    """A cache directory with one image in it, and places to mount at."""

    directory: Path
    rootfs: RootfsDescriptor

    @classmethod
    def build(cls, directory: Path, layers: Sequence[bytes]) -> Site:
        cache = NodeCache(directory / "cache", SEAL_KEY)
        rootfs = build_rootfs(cache, [ingest_tar(cache, layer) for layer in layers])
        for name in ("fuse", "root"):
            (directory / name).mkdir()
        return cls(directory, rootfs)

    @property
    def log(self) -> str:
        path = self.directory / "log"
        return path.read_text() if path.exists() else ""

    def blob(self, descriptor: BlobDescriptor) -> Path:
        return self.directory / "cache/blobs" / descriptor.file_name

    @contextmanager
    def served(self) -> Iterator[int]:
        """The server's process id; FUSE is mounted at `directory`/fuse."""
        blobs = [(name, str(self.blob(blob)), blob) for name, blob in self.rootfs.named_blobs]
        system = BlobFileSystem(blobs, str(self.directory / "fuse"), self._write_log)
        system.mount()
        pid = os.fork()
        if pid == 0:
            try:
                system.serve()
            finally:
                os._exit(0)
        system.close()
        try:
            yield pid
        finally:
            system.unmount()
            with suppress(ProcessLookupError, ChildProcessError):  # a test may have killed and reaped it
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)

    @contextmanager
    def mounted(self) -> Iterator[Path]:
        """EROFS over what is served."""
        names = [name for name, _ in self.rootfs.named_blobs]
        options = ",".join(f"device={self.directory}/fuse/{name}" for name in names[1:])
        root = self.directory / "root"
        syscalls.mount(f"{self.directory}/fuse/{names[0]}", str(root), "erofs", 1, options)
        try:
            yield root
        finally:
            syscalls.umount(str(root), syscalls.MNT_DETACH)

    def _write_log(self, line: str) -> None:
        with (self.directory / "log").open("a") as file:
            file.write(line + "\n")


def drop_caches() -> None:
    Path("/proc/sys/vm/drop_caches").write_text("3")
