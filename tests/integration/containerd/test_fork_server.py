"""Shims on a node with its fork server, and on one whose fork server is away, killed or hung: the same but for speed."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import cri as clients
import daemon
import pytest
from kubelet import OURS, Kubelet, Pod, wait_until

import testbed as testbeds

pytestmark = [pytest.mark.root, pytest.mark.slow]


def find(words: str) -> list[int]:
    """Processes whose command line holds `words`."""
    found = []
    for directory in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if words in (directory / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"):
                found.append(int(directory.name))
    return found


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def shim_of(pod: Pod) -> int:
    (found,) = [pid for pid in find(f"-id {pod.id}") if "containerd-shim-rune-v2" in show(pid)]
    return found


def show(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()


def server_of(node: daemon.Node) -> int:
    assert node.snapshotter is not None
    children = Path(f"/proc/{node.snapshotter.pid}/task").glob("*/children")
    (found,) = {int(word) for path in children for word in path.read_text().split()} & set(find(" fork-server "))
    return found


def cpu_processes(testbed: testbeds.Testbed) -> list[int]:
    pods = [path.name for path in (testbed.run_directory / "pods").glob("*")]
    return [pid for pid in find("enclave-cc-simulated-cpu ") if any(pod in show(pid) for pod in pods)]


def work(pod: Pod, name: str) -> None:
    assert pod.run(f"echo {name}; exit 3", name=name) == (3, f"{name}\n")


def test_shims_are_its_forks_and_the_cpu_sleeps(enclaves: Kubelet, testbed: testbeds.Testbed) -> None:
    pod = enclaves.run_pod()
    shim = shim_of(pod)
    assert parent_of(shim) == server_of(enclaves.node)
    work(pod, "first")
    wait_until(lambda: not cpu_processes(testbed))
    work(pod, "second")  # its handover wakes the CPU
    assert "cryptography" in Path(f"/proc/{server_of(enclaves.node)}/maps").read_text()
    assert parent_of(shim) == server_of(enclaves.node)
    pod.end()
    wait_until(lambda: not cpu_processes(testbed))


def test_the_cpus_process_is_killed(enclaves: Kubelet, testbed: testbeds.Testbed) -> None:
    pod = enclaves.run_pod()
    for name in ("first", "second"):
        for pid in cpu_processes(testbed):
            os.kill(pid, signal.SIGKILL)
        work(pod, name)


def test_killed_between_two_containers(enclaves: Kubelet, testbed: testbeds.Testbed) -> None:
    pod = enclaves.run_pod()
    work(pod, "first")
    os.kill(server_of(enclaves.node), signal.SIGKILL)
    wait_until(lambda: not cpu_processes(testbed))
    work(pod, "second")  # the platform is in the shim then, or in a fork of the next server
    other = enclaves.run_pod()
    work(other, "third")


def test_hung(enclaves: Kubelet) -> None:
    server = server_of(enclaves.node)
    os.kill(server, signal.SIGSTOP)
    try:
        pod = enclaves.run_pod()
        assert parent_of(shim_of(pod)) != server
        work(pod, "first")
    finally:
        with suppress(ProcessLookupError):  # the snapshotter may have found it out meanwhile
            os.kill(server, signal.SIGCONT)
    work(pod, "second")
    pod.end()


@pytest.fixture
def bare_node(testbed: testbeds.Testbed) -> Iterator[daemon.Node]:
    """A node of its own whose snapshotter runs no fork server."""
    directory = Path(tempfile.mkdtemp(prefix="ecc-", dir="/tmp"))
    configuration = directory / "config.toml"
    configuration.write_text(testbed.configuration.read_text() + '[network]\nagent = "host"\n')
    with daemon.running(directory / "c", testbed.registry_host, configuration=configuration, fork_server=False) as running:
        yield running
    shutil.rmtree(directory, ignore_errors=True)


def test_a_node_without(bare_node: daemon.Node, testbed: testbeds.Testbed, busybox: str, tmp_path: Path) -> None:
    assert bare_node.snapshotter is not None
    client = clients.Cri(bare_node.address)
    client.pull(busybox)
    kubelet = Kubelet(bare_node, client, tmp_path, OURS, busybox)
    try:
        pod = kubelet.run_pod()
        assert str(bare_node.shim) in show(shim_of(pod))  # started by its launcher
        work(pod, "first")
        assert not cpu_processes(testbed)  # it is in the shim
        container = pod.shell("echo up; exec sleep 100")
        wait_until(lambda: pod.output(container) == "up\n")
        assert pod.exec(container, "echo in")[:2] == (0, "in\n")
        pod.end()
    finally:
        kubelet.close()
        client.close()
