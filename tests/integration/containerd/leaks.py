"""What a node holds of pods: counted before and after, so that what was left can be named. Not a test; a part that tests share."""

from __future__ import annotations

import re
import stat
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import daemon
from kubelet import PARENT

import testbed as testbeds
from enclave_cc.host.shim import bootstrap
from enclave_cc.host.shim.arguments import Arguments

Holdings = dict[str, set[str]]


def take(node: daemon.Node, testbed: testbeds.Testbed) -> Holdings:
    """By kind, what is there now of this node's pods; what others do on this machine does not count."""
    here = (f"{node.directory}/", f"{testbed.run_directory}/", f"{testbed.state}/")
    mounts = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
    special = list(special_files(node.state, testbed.run_directory))
    return {
        "processes": set(processes(node, testbed)),
        "mounts": {point for point in mounts if point.startswith(here)},
        "control groups": {str(p) for base in Path("/sys/fs/cgroup").glob(f"*{PARENT}") for p in base.rglob("*") if p.is_dir()},
        "FIFOs": {path for path, kind in special if kind == stat.S_IFIFO},
        "sockets": {path for path, kind in special if kind == stat.S_IFSOCK} | set(dead_sockets(node)),
        "snapshots": {
            line.split()[0]
            for line in node.ctr("snapshots", "--snapshotter", daemon.SNAPSHOTTER, "ls").stdout.splitlines()[1:]
            if line.split()[-1] == "Active"
        },
        "directories": set(directories(node, testbed)),
        "addresses": {p.name for p in (node.directory / "ipam").rglob("10.*")},
        "tasks": set(node.ctr("tasks", "ls", "-q").stdout.split()),
    }


def processes(node: daemon.Node, testbed: testbeds.Testbed) -> Iterator[str]:
    """Shims of the node, and what runs in its pods' control groups or in our containers."""
    own = {node.containerd.pid if node.containerd else 0, node.snapshotter.pid if node.snapshotter else 0}
    for directory in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            line = (directory / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            shim = "containerd-shim" in line and str(node.address) in line
            engine = str(testbed.run_directory) in line or str(node.state) in line
            if (shim or engine or f"{PARENT}/" in (directory / "cgroup").read_text()) and int(directory.name) not in own:
                yield f"{directory.name}: {line[:150]}"
    yield from testbeds.enclave_processes(str(testbed.directory))


def dead_sockets(node: daemon.Node) -> Iterator[str]:
    """Sockets of our shims for pods of this node on which nobody listens. They lie in one directory with all others of the
    machine; their names are hashes of what they are for, and the log names every pod.
    """
    listening = {line.split()[-1] for line in Path("/proc/net/unix").read_text().splitlines() if "/" in line}
    for identifier in set(re.findall(r"\b[0-9a-f]{64}\b", node.log.read_text(errors="replace"))):
        asked = Arguments("start", daemon.NAMESPACE, str(node.address), identifier)
        path = bootstrap.socket_path(asked, identifier)
        if path not in listening and Path(path).exists():
            yield path


def directories(node: daemon.Node, testbed: testbeds.Testbed) -> Iterator[str]:
    """Bundles, CRI's own directories, snapshots on disk, the engine's pods and leases."""
    for pattern in ("state/io.containerd.runtime.v2.task/*/*", "root/io.containerd.runtime.v2.task/*/*"):
        yield from map(str, node.directory.glob(pattern))
    for pattern in ("*/io.containerd.grpc.v1.cri/sandboxes/*", "*/io.containerd.grpc.v1.cri/containers/*", "sn/snapshots/*"):
        yield from map(str, node.directory.glob(pattern))
    for directory in (testbed.run_directory / "pods", testbed.state / "cache/leases"):
        yield from map(str, directory.glob("*"))


def special_files(*tops: Path) -> Iterator[tuple[str, int]]:
    """(path, type) of each FIFO and socket below `tops`."""
    for top in tops:
        for path in top.rglob("*"):
            with suppress(OSError):
                kind = stat.S_IFMT(path.lstat().st_mode)
                if kind in (stat.S_IFIFO, stat.S_IFSOCK):
                    yield str(path), kind


def expect_none(before: Holdings, node: daemon.Node, testbed: testbeds.Testbed, *, seconds: float = 20) -> None:
    """Fails with the names of what came since `before` and did not go within `seconds`."""
    until = time.monotonic() + seconds
    while True:
        now = take(node, testbed)
        left = {kind: sorted(now[kind] - before[kind]) for kind in now if now[kind] - before[kind]}
        if not left:
            return
        assert time.monotonic() < until, left
        time.sleep(0.3)


def resident(pid: int) -> int:
    """Bytes of private and shared memory in proportion (PSS, proc(5))."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    return 0
