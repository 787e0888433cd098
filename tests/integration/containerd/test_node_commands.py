"""`enclave-cc` on a node whose pods are containerd's: it shows them, and leaves them to containerd."""

from __future__ import annotations

import json
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import grpc
import leaks
import pytest
from cri_messages import ContainerState
from kubelet import Kubelet, Pod, wait_until

import testbed as testbeds

pytestmark = pytest.mark.root

FOREVER = "while :; do sleep 0.1; done"


@pytest.fixture
def live(enclaves: Kubelet) -> tuple[Pod, str]:
    """A pod and its container, which runs."""
    pod = enclaves.run_pod()
    container = pod.shell(f"echo up; {FOREVER}")
    wait_until(lambda: pod.output(container) == "up\n")
    return pod, container


def find_row(testbed: testbeds.Testbed, pod: Pod) -> dict[str, object]:
    (row,) = (row for row in testbed.pods() if row.get("managed") == pod.id)
    return row


def test_ps_shows_whose_it_is(live: tuple[Pod, str], testbed: testbeds.Testbed) -> None:
    pod, _ = live
    row = find_row(testbed, pod)
    assert pod.config.metadata is not None
    assert (row["manager"], row["state"]) == ("containerd", "running")
    assert row["image"] == f"(containerd: default/{pod.config.metadata.name})"
    assert str(row["id"]) in testbed.cli("ps", "-q").stdout.split()


@pytest.mark.parametrize("words", [("stop",), ("stop", "-t", "0"), ("rm", "-f"), ("exec",), ("logs",), ("logs", "--boot")])
def test_what_is_containerds_is_refused(live: tuple[Pod, str], testbed: testbeds.Testbed, words: tuple[str, ...]) -> None:
    pod, container = live
    identifier = str(find_row(testbed, pod)["id"])
    command = ("/bin/true",) if words[0] == "exec" else ()
    done = testbed.cli(*words, identifier, *command, check=False)
    assert testbeds.last_error(done) == "wrong-state"
    assert pod.id in done.stderr and ("kubectl" in done.stderr)
    assert pod.cri.container_status(container).state == ContainerState.RUNNING
    assert pod.exec(container, "echo alive")[1] == "alive\n"
    assert pod.run("echo next", name="next") == (0, "next\n")  # the shim serves on


def test_all_are_all_but_containerds(live: tuple[Pod, str], testbed: testbeds.Testbed, busybox: str) -> None:
    pod, container = live
    ours = testbed.cli("run", "-d", busybox, "/bin/sleep", "300").stdout.strip()
    done = testbed.cli("rm", "-f", "--all")
    assert done.stdout.split() == [ours]
    assert pod.exec(container, "echo alive")[1] == "alive\n"
    assert find_row(testbed, pod)["state"] == "running"


def test_the_agents_log(live: tuple[Pod, str], testbed: testbeds.Testbed) -> None:
    pod, _ = live
    shown = testbed.cli("logs", "--agent", str(find_row(testbed, pod)["id"])).stdout
    assert "image pulled" in shown and "handed over" in shown


def test_a_pod_whose_shim_died_can_be_removed(live: tuple[Pod, str], testbed: testbeds.Testbed) -> None:
    """Nobody else's by then; containerd still gets its pod away."""
    pod, _ = live
    row = find_row(testbed, pod)
    pid = row["supervisor"]
    assert isinstance(pid, int)
    os.kill(pid, signal.SIGSTOP)  # containerd sees no end yet, and cleans nothing up by itself
    try:
        assert testbeds.last_error(testbed.cli("rm", "-f", str(row["id"]), check=False)) == "wrong-state"
    finally:
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not any(other.get("managed") == pod.id and other["state"] == "running" for other in testbed.pods()))
    testbed.cli("rm", "-f", str(row["id"]), check=False)  # containerd may have been quicker
    wait_until(lambda: all(other.get("managed") != pod.id for other in testbed.pods()))
    wait_until(lambda: is_ended(pod))


def is_ended(pod: Pod) -> bool:
    """As the kubelet does it, which tries again: containerd 2 takes a moment to see that a shim is dead."""
    try:
        pod.end()
    except grpc.RpcError:
        return False
    return True


# --- pods that cross each other


def test_two_pods_of_one_name(enclaves: Kubelet, testbed: testbeds.Testbed) -> None:
    """As a StatefulSet's pod and its successor, or pods of two namespaces: told apart by uid."""
    pods = [enclaves.run_pod(name="twin"), enclaves.run_pod(name="twin"), enclaves.run_pod(name="twin", namespace="other")]
    for number, pod in enumerate(pods):
        assert pod.run(f"hostname; echo {number}") == (0, f"twin\n{number}\n")
    assert len({find_row(testbed, pod)["id"] for pod in pods}) == 3
    pods[0].end()
    assert pods[1].run("echo still", name="again") == (0, "still\n")


def test_stopping_while_containers_start(enclaves: Kubelet, testbed: testbeds.Testbed) -> None:
    """At any moment of a creation: the pod stops and goes at once, and nothing is left."""
    warm = enclaves.run_pod()
    assert warm.run("true")[0] == 0
    warm.end()
    before = leaks.take(enclaves.node, testbed)
    with ThreadPoolExecutor(1) as pool:
        for step in range(8):
            pod = enclaves.run_pod()
            container = pod.create("/bin/sh", "-c", FOREVER)
            starting = pool.submit(pod.cri.start, container)
            time.sleep(step * 0.06)
            pod.cri.stop_pod(pod.id)
            with suppress(grpc.RpcError):
                starting.result(30)
            assert pod.cri.container_status(container).state == ContainerState.EXITED
            pod.end()
    leaks.expect_none(before, enclaves.node, testbed)


def test_records_say_nothing_of_a_managed_pod(enclaves: Kubelet, testbed: testbeds.Testbed) -> None:
    """containerd keeps what ended; here nothing stays."""
    pod = enclaves.run_pod()
    assert pod.run("exit 3")[0] == 3
    identifier = str(find_row(testbed, pod)["id"])
    pod.end()
    assert all(row["id"] != identifier for row in json.loads(testbed.cli("ps", "-a", "--json").stdout))
    assert not list(Path(testbed.run_directory / "records").glob(identifier))
