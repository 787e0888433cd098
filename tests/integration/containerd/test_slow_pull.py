"""While an agent pulls, however long that takes, containerd gets its answers; and a pull can be given up."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path

import cri as clients
import daemon
import grpc
import pytest
from kubelet import OURS, Kubelet, Pod, wait_until
from test_hostile_host import shim_socket
from test_pod_network import find_agent

import testbed as testbeds
from enclave_cc.errors import PeerError
from enclave_cc.transport import ttrpc
from enclave_cc.wire.pb import codec, task

pytestmark = pytest.mark.root

FOREVER = "while :; do sleep 0.1; done"


@pytest.fixture
def uncached(testbed: testbeds.Testbed, sources: Path, cri: clients.Cri) -> str:
    """An encrypted image whose layer no agent has pulled yet; containerd knows it."""
    name = f"slow-{os.urandom(4).hex()}"
    root = sources.parent / "root"
    (root / "opt/name").write_bytes(os.urandom(2 << 20))
    try:
        source = testbeds.make_image(sources, name, root, "--config.cmd", "/bin/sh")
    finally:
        (root / "opt/name").unlink()
    image = testbed.publish(source, name, "--allow", "all")
    cri.pull(image)
    return image


@contextmanager
def stalled(testbed: testbeds.Testbed) -> Iterator[None]:
    """The registry takes connections and says nothing."""
    assert testbed.registry is not None
    testbed.registry.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        testbed.registry.send_signal(signal.SIGCONT)


def test_answers_while_an_image_is_pulled(enclaves: Kubelet, testbed: testbeds.Testbed, uncached: str) -> None:
    node, cri = enclaves.node, enclaves.cri
    pod = enclaves.run_pod()
    other = pod.shell(f"echo up; {FOREVER}", name="other")
    wait_until(lambda: pod.output(other) == "up\n")
    waiting = pod.create("/bin/sh", "-c", "echo at last", image=uncached, name="waiting")
    size = node.log.stat().st_size
    with ThreadPoolExecutor(1) as pool:
        with stalled(testbed):
            starting = pool.submit(cri.start, waiting)
            time.sleep(0.5)
            until, slowest = time.monotonic() + 3, 0.0
            while time.monotonic() < until:
                began = time.monotonic()
                assert pod.exec(other, "echo alive")[1] == "alive\n"
                cri.pod_status(pod.id)
                cri.container_status(waiting)
                node.ctr("tasks", "ls")
                slowest = max(slowest, time.monotonic() - began)
            assert slowest < 2
            assert not starting.done()
            with node.log.open() as log:
                log.seek(size)
                assert f"image={uncached}" in log.read().replace('"', "").replace(":latest", "")  # progress, in containerd's log
        starting.result(60)
    assert pod.wait(waiting).exit_code == 0
    assert pod.output(waiting) == "at last\n"


@contextmanager
def stopped_agent(pod: Pod) -> Iterator[None]:
    """It takes connections and says nothing."""
    agent = find_agent(pod)
    os.kill(agent, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(agent, signal.SIGCONT)


@pytest.mark.parametrize(("method", "hung"), [("Kill", "registry"), ("Delete", "registry"), ("Kill", "agent")])
def test_a_task_is_ended_while_its_image_is_pulled(
    enclaves: Kubelet, testbed: testbeds.Testbed, uncached: str, method: str, hung: str
) -> None:
    """By the shim's own methods, before containerd has an answer to Create; the rest of the pod is answered meanwhile."""
    pod = enclaves.run_pod()
    other = pod.shell(f"echo up; {FOREVER}", name="other")
    wait_until(lambda: pod.output(other) == "up\n")
    waiting = pod.create("/bin/sh", image=uncached)
    requests = {"Kill": task.KillRequest(waiting, "", signal.SIGKILL), "Delete": task.ProcessRequest(waiting)}
    with ThreadPoolExecutor(1) as pool, stalled(testbed), ttrpc.Client(shim_socket(pod), deadline=15) as client:
        starting = pool.submit(pod.cri.start, waiting)
        state = codec.encode(task.ProcessRequest(waiting))
        wait_until(lambda: knows(client, state))
        time.sleep(1)  # the pull is under way
        with stopped_agent(pod) if hung == "agent" else nullcontext():
            client.call(task.SERVICES[0], method, codec.encode(requests[method]), timeout=5)
            client.call(task.SERVICES[0], "State", codec.encode(task.ProcessRequest(other)), timeout=5)
    with pytest.raises(grpc.RpcError) as caught:
        starting.result(30)
    assert "app-died" in str(caught.value.details())
    with ttrpc.Client(shim_socket(pod), deadline=15) as client:
        assert not knows(client, state)
    assert pod.exec(other, "echo alive")[1] == "alive\n"
    assert pod.run("echo next", name="next") == (0, "next\n")
    pod.end()


def knows(client: ttrpc.Client, state: bytes) -> bool:
    try:
        client.call(task.SERVICES[0], "State", state)
    except PeerError as error:
        assert error.code == "not-found"
        return False
    return True


def test_a_pull_is_given_up(enclaves: Kubelet, testbed: testbeds.Testbed, uncached: str) -> None:
    """A pod is deleted while its image comes: it goes at once, and the start fails with a coded error."""
    pod = enclaves.run_pod()
    waiting = pod.create("/bin/sh", image=uncached)
    with ThreadPoolExecutor(1) as pool, stalled(testbed):
        starting = pool.submit(pod.cri.start, waiting)
        time.sleep(1)
        began = time.monotonic()
        pod.end()
        assert time.monotonic() - began < 15
        with pytest.raises(grpc.RpcError):
            starting.result(30)


@pytest.fixture
def hasty_node(testbed: testbeds.Testbed) -> Iterator[daemon.Node]:
    """A node of its own whose pulls may take two seconds."""
    directory = Path(tempfile.mkdtemp(prefix="ecc-", dir="/tmp"))
    configuration = directory / "config.toml"
    configuration.write_text(testbed.configuration.read_text() + '[network]\nagent = "host"\n[deadlines]\npull = 2\n')
    with daemon.running(directory / "c", testbed.registry_host, configuration=configuration) as running:
        yield running
    shutil.rmtree(directory, ignore_errors=True)


@pytest.mark.slow
def test_a_pull_ends_by_the_nodes_deadline(
    hasty_node: daemon.Node, testbed: testbeds.Testbed, uncached: str, tmp_path: Path
) -> None:
    cri = clients.Cri(hasty_node.address)
    cri.pull(uncached)
    kubelet = Kubelet(hasty_node, cri, tmp_path, OURS, uncached)
    try:
        pod = kubelet.run_pod()
        with stalled(testbed), pytest.raises(grpc.RpcError) as caught:
            pod.shell("true")
        assert "deadline: " in str(caught.value.details())
        assert pod.run("echo next", name="next") == (0, "next\n")
        pod.end()
    finally:
        kubelet.close()
        cri.close()
