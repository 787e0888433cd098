"""Sealed blobs under FUSE and EROFS, against gocryptfs and plain files, on the same tree and disk.

Write: a tar archive (in the page cache) becomes a mountable tree, until the disk has it (sync). Ours: seal and metadata.
Peers: `tar -x` into gocryptfs, and into the plain file system. Cold means after drop_caches. Rounds take turns
between the sides; figures are medians.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from bench.report import print_table, verdict
from enclave_cc.crypto.secret import Secret
from enclave_cc.enclave.boot import syscalls
from enclave_cc.enclave.boot.fuse import BlobFileSystem
from enclave_cc.enclave.image.layer import ingest_layer
from enclave_cc.enclave.rootfs.build import build_rootfs
from enclave_cc.enclave.rootfs.cache import NodeCache
from enclave_cc.wire.sealed.rootfs import RootfsDescriptor

SOURCES = ("/usr/include", "/usr/share", "/usr/lib/python3", "/usr/lib/python3.11")
TASKS = ("cold find", "cold read", "warm read")


def timed(action: Callable[[], object]) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def drop_caches() -> None:
    """The tree is cold then, the programs that read it are not: loading them is no side's work."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")
    with tempfile.TemporaryDirectory() as empty:
        find_all(Path(empty))
        (Path(empty) / "file").touch()
        read_all(Path(empty))


def run_shell(command: str, directory: Path) -> None:
    subprocess.run(["sh", "-c", command], cwd=directory, check=True, stdout=subprocess.DEVNULL)


def find_all(root: Path) -> None:
    run_shell("find . -printf '%s %m %U\\n'", root)


def read_all(root: Path) -> None:
    run_shell("find . -type f -print0 | xargs -0 cat", root)


class Plain:
    """Files as they are on the disk's own file system."""

    name = "plain"

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def write(self, tar: Path) -> None:
        root = self.directory / "root"
        root.mkdir(parents=True)
        run_shell(f"tar -xf {tar}", root)

    @contextmanager
    def mounted(self) -> Iterator[Path]:
        yield self.directory / "root"


class Gocryptfs(Plain):
    """gocryptfs with its defaults."""

    name = "gocryptfs"

    def write(self, tar: Path) -> None:
        cipher, root = self.directory / "cipher", self.directory / "root"
        cipher.mkdir(parents=True)
        root.mkdir()
        subprocess.run(["gocryptfs", "-q", "-init", "-scryptn", "10", "-extpass", "echo x", str(cipher)], check=True)
        with self.mounted():
            run_shell(f"tar -xf {tar}", root)

    @contextmanager
    def mounted(self) -> Iterator[Path]:
        root = self.directory / "root"
        subprocess.run(["gocryptfs", "-q", "-extpass", "echo x", str(self.directory / "cipher"), str(root)], check=True)
        try:
            yield root
        finally:
            subprocess.run(["umount", str(root)], check=True)


class Sealed(Plain):
    """Ours: FUSE serves the blobs, EROFS is mounted over them."""

    name = "sealed"
    server_memory = 0  # bytes, proportional set size

    def write(self, tar: Path) -> None:
        cache = NodeCache(self.directory, Secret.random(16))
        size = tar.stat().st_size
        digest = "sha256:" + tar.with_suffix(".sha256").read_text()

        def chunks() -> Iterator[bytes]:
            with tar.open("rb", buffering=0) as file:
                while chunk := file.read(256 * 1024):
                    yield chunk

        layer = ingest_layer(
            chunks(),
            digest=digest,
            size=size,
            diff_id=digest,
            media_type="application/vnd.oci.image.layer.v1.tar",
            cipher=None,
            directory=self.directory,
            progress=lambda done: None,
        )
        self._rootfs = build_rootfs(cache, [layer])
        for name in ("fuse", "root"):
            (self.directory / name).mkdir()

    @contextmanager
    def mounted(self) -> Iterator[Path]:
        rootfs: RootfsDescriptor = self._rootfs
        fuse, root = self.directory / "fuse", self.directory / "root"
        blobs = [(name, str(self.directory / "blobs" / blob.file_name), blob) for name, blob in rootfs.named_blobs]
        system = BlobFileSystem(blobs, str(fuse), lambda line: print(line, file=sys.stderr))
        system.mount()
        pid = os.fork()
        if pid == 0:
            try:
                system.serve()
            finally:
                os._exit(0)
        system.close()
        try:
            options = ",".join(f"device={fuse}/{index}" for index in range(len(rootfs.layers)))
            syscalls.mount(f"{fuse}/meta", str(root), "erofs", 1, options)
            try:
                yield root
                rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
                self.server_memory = int(rollup.split("Pss:")[1].split()[0]) * 1024
            finally:
                syscalls.umount(str(root))
        finally:
            system.unmount()
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def pack_tree(tar: Path, megabytes: int) -> tuple[int, int]:
    """A tar archive of this machine's own files up to that size; files and bytes in it."""
    chosen: list[str] = []
    count = total = 0
    for source in SOURCES:
        for path in sorted(Path(source).rglob("*")):
            if total >= megabytes << 20:
                break
            chosen.append(str(path).lstrip("/"))
            if path.is_file() and not path.is_symlink():
                count += 1
                total += path.stat().st_size
    subprocess.run(
        ["tar", "-cf", str(tar), "-C", "/", "--no-recursion", "--null", "-T", "-"],
        input="\0".join(chosen).encode(errors="surrogateescape"),
        check=True,
    )
    with tar.open("rb") as file:
        tar.with_suffix(".sha256").write_text(hashlib.file_digest(file, "sha256").hexdigest())
    return count, total


def measure(sides: list[Plain], tar: Path, rounds: int) -> dict[tuple[str, str], float]:
    """Seconds by (side, task)."""
    seconds: dict[tuple[str, str], list[float]] = {}
    for number in range(rounds):
        for side in sides:
            side.directory = side.directory.with_name(f"{side.name}{number}")
            run_shell(f"cat {tar}", tar.parent)
            os.sync()
            seconds.setdefault((side.name, "write"), []).append(timed(lambda side=side: (side.write(tar), os.sync())))
            with side.mounted() as root:
                drop_caches()
                seconds.setdefault((side.name, "cold find"), []).append(timed(lambda root=root: find_all(root)))
                drop_caches()
                seconds.setdefault((side.name, "cold read"), []).append(timed(lambda root=root: read_all(root)))
                seconds.setdefault((side.name, "warm read"), []).append(timed(lambda root=root: read_all(root)))
            shutil.rmtree(side.directory)
    return {key: statistics.median(values) for key, values in seconds.items()}


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="bench sealed", description=__doc__)
    parser.add_argument("--megabytes", type=int, default=500, help="size of the tree")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args(arguments)
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ecc-", dir="/var/tmp")))
        tar = scratch / "tree.tar"
        count, total = pack_tree(tar, options.megabytes)
        print(f"{count} files, {total / 1e6:.0f} MB, {options.rounds} rounds, load {os.getloadavg()[0]:.1f}", flush=True)
        ours = Sealed(scratch / "sealed")
        sides = [ours, Gocryptfs(scratch / "gocryptfs"), Plain(scratch / "plain")]
        seconds = measure(sides, tar, options.rounds)
    rows = []
    for task in ("write", *TASKS):
        mine, peer, plain = (seconds[side.name, task] for side in sides)
        rows.append((task, mine, peer, plain, peer / mine, plain / mine))
    print_table(("seconds", "sealed", "gocryptfs", "plain", "gocryptfs/sealed", "plain/sealed"), rows)
    print(f"server of the sealed blobs: {ours.server_memory / 1e6:.1f} MB PSS, beside the process it was forked from")
    for name, task, aim in (("cold read", "cold read", 3.0), ("warm read", "warm read", 3.0), ("cold find", "cold find", 10.0)):
        verdict(f"{name} against gocryptfs", seconds["gocryptfs", task] / seconds["sealed", task], aim)
    return 0
