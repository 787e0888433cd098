"""Many pods, in a row and at once, and any process killed at any time: nothing is lost, nothing is left.

`make test` runs small numbers; ENCLAVE_CC_PODS, ENCLAVE_CC_AT_ONCE and ENCLAVE_CC_KILLS set others (issue's figures: 50, 20,
200). Moments of kills are random; the seed is printed and taken from ENCLAVE_CC_SEED.
"""

from __future__ import annotations

import os
import random
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import cri as clients
import daemon
import grpc
import leaks
import pytest
from cri_messages import ContainerState
from kubelet import OURS, PARENT, Kubelet, Pod, remove_group, wait_ready, wait_until

import testbed as testbeds

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.timeout(3600)]

IN_A_ROW = int(os.environ.get("ENCLAVE_CC_PODS", "6"))
AT_ONCE = int(os.environ.get("ENCLAVE_CC_AT_ONCE", "5"))
KILLS = int(os.environ.get("ENCLAVE_CC_KILLS", "8"))
FOREVER = "while :; do sleep 0.1; done"


@pytest.fixture
def no_leaks(kubelet: Kubelet, testbed: testbeds.Testbed) -> Iterator[leaks.Holdings]:
    """Counts before, and after the test's pods have ended."""
    before = leaks.take(kubelet.node, testbed)
    yield before
    kubelet.close()
    leaks.expect_none(before, kubelet.node, testbed)


def live(kubelet: Kubelet, number: int) -> None:
    """One pod from its start to its removal."""
    pod = kubelet.run_pod()
    assert pod.run(f"echo {number}; exit {number % 100}") == (number % 100, f"{number}\n")
    pod.end()


@pytest.mark.usefixtures("no_leaks")
def test_pods_in_a_row(kubelet: Kubelet) -> None:
    node = kubelet.node
    assert node.snapshotter is not None
    live(kubelet, 0)
    warm = leaks.resident(node.snapshotter.pid)
    for number in range(1, IN_A_ROW):
        live(kubelet, number)
    assert leaks.resident(node.snapshotter.pid) < warm * 1.1 + (1 << 20)


@pytest.mark.usefixtures("no_leaks")
def test_pods_at_once(kubelet: Kubelet) -> None:
    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(lambda number: live(kubelet, number), range(AT_ONCE)))


@pytest.mark.usefixtures("no_leaks")
def test_restarts_in_a_row(kubelet: Kubelet) -> None:
    """The memory of one pod's shim is flat over its containers' lives."""
    pod = kubelet.run_pod()
    shim = shim_of(kubelet.node, pod.id)
    warm = 0
    for number in range(IN_A_ROW):
        container = pod.shell(f"echo {number}")
        assert pod.wait(container).exit_code == 0
        pod.cri.remove(container)
        warm = warm or leaks.resident(shim)
    assert leaks.resident(shim) < warm * 1.1 + (2 << 20)


def shim_of(node: daemon.Node, pod: str) -> int:
    return next(int(line.split(":")[0]) for line in all_shims(node) if pod in line)


def all_shims(node: daemon.Node) -> list[str]:
    found = []
    for directory in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            line = (directory / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if "containerd-shim" in line and str(node.address) in line:
                found.append(f"{directory.name}: {line}")
    return found


# --- kill -9

VICTIMS = ("shim", "agent", "boot", "snapshotter", "containerd", "fork server", "simulated CPU")


def find_victims(node: daemon.Node, kind: str) -> list[int]:
    """Processes of that kind; one of them is killed."""
    if kind == "snapshotter":
        return [node.snapshotter.pid] if node.snapshotter else []
    if kind == "containerd":
        return [node.containerd.pid] if node.containerd else []
    if kind in ("fork server", "simulated CPU"):
        servers = find_children(node.snapshotter.pid if node.snapshotter else 0, b"\0fork-server\0")
        if kind == "fork server":
            return servers
        return [pid for server in servers for pid in find_children(server, b"enclave-cc-simulated-cpu")]
    if kind == "shim":
        return [int(line.split(":")[0]) for line in all_shims(node) if "rune" in line]
    found = []
    for directory in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            ours = f"{PARENT}/" in (directory / "cgroup").read_text()
            if ours and f"enclave_cc.enclave.{kind}".encode() in (directory / "cmdline").read_bytes():
                found.append(int(directory.name))
    return found


def find_children(pid: int, words: bytes) -> list[int]:
    """Those whose command line holds `words`."""
    found = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            for child in path.read_text().split():
                with suppress(OSError):
                    if words in Path(f"/proc/{child}/cmdline").read_bytes():
                        found.append(int(child))
    return found


def shorten(text: str) -> str:
    """An error without what differs from pod to pod."""
    return re.sub(r"[0-9a-f]{12,}|\\d+", "#", text)[:160]


class Load:
    """Pods come and go in a thread, each as the kubelet does it, whatever fails; the last word of each must be a removal."""

    def __init__(self, kubelet: Kubelet) -> None:
        self.kubelet = kubelet
        self.outcomes: Counter[str] = Counter()
        self.wrong: list[str] = []
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(n,)) for n in range(2)]
        for thread in self._threads:
            thread.start()

    def _run(self, lane: int) -> None:
        number = lane
        while not self._stop.is_set():
            number += 2
            self._live(number)

    def _live(self, number: int) -> None:
        pod = None
        try:
            pod = self.kubelet.run_pod()
            container = pod.shell(f"echo {number}; sleep 0.2; exit 5")
            status = pod.wait(container, 60)
            if status.exit_code == 5:
                if pod.output(container) != f"{number}\n":
                    self.wrong.append(f"pod {number}: exit 5, output {pod.output(container)!r}")
                self.outcomes["whole"] += 1
            else:
                self.outcomes[f"exit {status.exit_code}"] += 1
        except grpc.RpcError as error:
            self.outcomes[f"refused: {error.code().name} {shorten(str(error.details()))}"] += 1
            time.sleep(0.3)  # as the kubelet backs off
        except AssertionError as error:
            self.wrong.append(f"pod {number}: {error}")
        if pod is not None:
            self._remove(pod.id)
            if pod in self.kubelet.pods:
                self.kubelet.pods.remove(pod)

    def _remove(self, pod: str) -> None:
        """As the kubelet's garbage collection: again until it works, with a limit."""
        until = time.monotonic() + 90
        while True:
            try:
                self.kubelet.cri.end_pod(pod)
                return
            except grpc.RpcError as error:
                if time.monotonic() > until:
                    self.wrong.append(f"pod {pod} cannot be removed: {error.details()}")
                    return
                time.sleep(0.3)

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(180)
            assert not thread.is_alive(), "a pod hangs"


def test_kill_at_random_points(enclaves: Kubelet, testbed: testbeds.Testbed, node: daemon.Node, canary: str) -> None:
    seed = int(os.environ.get("ENCLAVE_CC_SEED", random.randrange(2**32)))
    print(f"seed {seed}")
    rng = random.Random(seed)
    live(enclaves, 1)
    before = leaks.take(node, testbed)
    hits = dict.fromkeys(VICTIMS, 0)
    load = Load(enclaves)
    try:
        for number in range(KILLS):
            time.sleep(rng.uniform(0.2, 1.6))
            hits[kill(node, enclaves.cri, VICTIMS[number % len(VICTIMS)], rng)] += 1
            if number % 25 == 24:
                assert load.wrong == []
    finally:
        load.stop()
    print(hits, dict(load.outcomes))
    assert load.wrong == []
    try_again(lambda: live(enclaves, 1))  # containerd waits before it dials a snapshotter again that was just killed
    sweep(enclaves)
    live(enclaves, 2)
    leaks.expect_none(before, node, testbed, seconds=60)
    assert load.outcomes["whole"] >= KILLS // 8  # it was under load
    assert testbed.find_plaintext(canary.encode()) == []


def kill(node: daemon.Node, cri: clients.Cri, kind: str, rng: random.Random) -> str:
    """Kills one process of that kind, when there is one within a few seconds; brings daemons back, as systemd does."""
    until = time.monotonic() + 10
    while not (victims := find_victims(node, kind)):
        assert time.monotonic() < until, f"no {kind} to kill"
        time.sleep(0.01)
    if kind == "containerd":
        node.kill_containerd()
        node.start_containerd()
        wait_ready(cri)
    elif kind == "snapshotter":
        node.kill_snapshotter()
        node.start_snapshotter()
    else:
        with suppress(ProcessLookupError):
            os.kill(rng.choice(victims), signal.SIGKILL)
    return kind


def try_again(work: Callable[[], None]) -> None:
    """As the kubelet does, for half a minute."""
    until = time.monotonic() + 30
    while True:
        try:
            return work()
        except grpc.RpcError:
            if time.monotonic() > until:
                raise
            time.sleep(0.5)


def sweep(kubelet: Kubelet) -> None:
    """The kubelet's garbage collection: removes sandboxes that a RunPodSandbox left whose answer got lost."""
    for pod in kubelet.cri.list_pods():
        kubelet.cri.end_pod(pod.id)
    for container in kubelet.cri.list_containers():
        kubelet.cri.remove(container.id)
    for path in sorted(Path("/sys/fs/cgroup").glob(f"*{PARENT}/*")):
        with suppress(OSError):
            path.rmdir()


def test_containerd_restarts_under_running_pods(kubelet: Kubelet) -> None:
    """A restarted containerd finds its pods; their output and exit codes are not lost."""
    node = kubelet.node
    pod = kubelet.run_pod()
    container = pod.shell("echo begun; while [ ! -e /tmp/end ]; do sleep 0.1; done; echo ended; exit 4")
    wait_until(lambda: pod.output(container) == "begun\n")
    node.kill_containerd()
    node.start_containerd()
    wait_ready(pod.cri)
    assert pod.cri.container_status(container).state == ContainerState.RUNNING
    assert pod.exec(container, "touch /tmp/end")[0] == 0
    assert pod.wait(container).exit_code == 4
    wait_until(lambda: pod.output(container) == "begun\nended\n")


def test_an_exit_while_containerd_is_away(kubelet: Kubelet) -> None:
    """The exit code is not lost. (Of runc's it is, from 1.7 on: its shim lists no process then, and containerd deletes it.)"""
    node = kubelet.node
    pod = kubelet.run_pod()
    container = pod.shell("sleep 1.5; exit 6")
    node.kill_containerd()
    time.sleep(2.5)
    node.start_containerd()
    wait_ready(pod.cri)
    assert pod.wait(container).exit_code == (6 if kubelet.handler == OURS or node.version < (1, 7) else 255)
    pod.end()


def test_a_killed_workload(kubelet: Kubelet) -> None:
    """kill -9 of the container's first process from outside: 137, and the pod lives on."""
    pod = kubelet.run_pod()
    container = pod.shell(FOREVER)
    pids = [int(line.split()[1]) for line in kubelet.node.ctr("tasks", "ls").stdout.splitlines() if line.startswith(container)]
    os.kill(pids[0], signal.SIGKILL)
    assert pod.wait(container).exit_code == 137
    assert pod.run("echo next", name="next") == (0, "next\n")


def test_a_killed_shim(kubelet: Kubelet, cri: clients.Cri, testbed: testbeds.Testbed) -> None:
    """containerd sees the pod's containers end, and the pod can be removed with all it had."""
    before = leaks.take(kubelet.node, testbed)
    pod = kubelet.run_pod()
    container = pod.shell(FOREVER)
    os.kill(shim_of(kubelet.node, pod.id), signal.SIGKILL)
    wait_until(lambda: cri.container_status(container).state in (ContainerState.EXITED, ContainerState.UNKNOWN))
    if kubelet.handler == OURS:
        pod.end()
        leaks.expect_none(before, kubelet.node, testbed)
    else:  # containerd's own shim leaves its socket then, and that of 2.x the processes
        cri.end_pod(pod.id)
        end_processes(pod)
        pod.remove_groups()


def end_processes(pod: Pod) -> None:
    """All in the pod's control groups; again until none is left, for they fork."""
    assert pod.config.linux is not None

    def ended() -> bool:
        listed = Path("/sys/fs/cgroup").glob(f"*{pod.config.linux.cgroup_parent}/**/cgroup.procs")
        pids = {int(word) for path in listed for word in path.read_text().split()}
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for path in sorted(Path("/sys/fs/cgroup").glob(f"*{pod.config.linux.cgroup_parent}/*"), reverse=True):
            remove_group(path)
        return not pids

    wait_until(ended)


@pytest.mark.parametrize("kind", ["agent", "boot"])
def test_a_killed_enclave(enclaves: Kubelet, kind: str) -> None:
    """With boot init its container ends. Without an agent the containers run on, but none can be started; the pod goes."""
    pod = enclaves.run_pod()
    container = pod.shell(f"echo up; {FOREVER}")
    wait_until(lambda: pod.output(container) == "up\n")
    for pid in find_victims(enclaves.node, kind):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    if kind == "boot":
        assert pod.wait(container).exit_code == 137
    else:
        with pytest.raises(grpc.RpcError) as caught:
            pod.shell("true", name="second")
        assert "agent-" in str(caught.value.details())
    pod.end()
