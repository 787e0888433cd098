"""containerd's events of a pod's life, in order, and tasks by `ctr`. Each test of events runs with ordinary pods and ours."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator

import cri as clients
import daemon
import pytest
from cri_messages import LinuxContainerResources
from kubelet import OURS, RUNC, Kubelet, wait_until

import testbed as testbeds

pytestmark = pytest.mark.root

FOREVER = "while :; do sleep 0.1; done"
RUNTIME = {RUNC: "io.containerd.runc.v2", OURS: "io.containerd.rune.v2"}


class Events:
    """What `ctr events` prints while a test runs."""

    def __init__(self, node: daemon.Node) -> None:
        self._process, self._lines = daemon.collect_events(node)

    def of(self, container: str) -> list[tuple[str, dict[str, object]]]:
        """(topic, event) of each task event that names the container."""
        found = []
        for line in list(self._lines):
            words = line.split(" ", 7)
            topic = next((word for word in words if word.startswith("/tasks/")), None)
            if topic is not None and container in line:
                found.append((topic, json.loads(line[line.index("{") :])))
        return found

    def topics(self, container: str) -> list[str]:
        return [topic for topic, _ in self.of(container)]

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(10)


@pytest.fixture
def events(node: daemon.Node) -> Iterator[Events]:
    found = Events(node)
    yield found
    found.close()


def test_events_of_a_pod(kubelet: Kubelet, events: Events) -> None:
    pod = kubelet.run_pod()
    container = pod.shell("exit 3")
    pod.wait(container)
    pod.end()
    # runc's shim may end before it has sent its pod's last event (2.x, on a busy machine).
    last = "/tasks/delete" if kubelet.handler == OURS else "/tasks/exit"
    wait_until(lambda: last in events.topics(pod.id) and "/tasks/delete" in events.topics(container))
    life = ["/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete"]
    assert [topic for topic in events.topics(container) if topic in life] == life
    told = [topic for topic in events.topics(pod.id) if topic in life]
    assert told == life or (kubelet.handler == RUNC and told == life[:-1])
    by_topic = dict(events.of(container))
    assert by_topic["/tasks/exit"]["exit_status"] == 3
    assert by_topic["/tasks/exit"]["id"] == container
    assert by_topic["/tasks/create"]["pid"] == by_topic["/tasks/start"]["pid"] == by_topic["/tasks/exit"]["pid"]
    assert by_topic["/tasks/exit"]["exited_at"]


def test_events_of_exec(kubelet: Kubelet, events: Events) -> None:
    pod = kubelet.run_pod()
    container = pod.shell(FOREVER)
    assert pod.exec(container, "exit 9")[0] == 9
    wait_until(lambda: "/tasks/exit" in events.topics(container))
    expected = ["/tasks/create", "/tasks/start", "/tasks/exec-added", "/tasks/exec-started", "/tasks/exit"]
    assert [topic for topic in events.topics(container) if topic in expected] == expected
    by_topic = dict(events.of(container))
    assert by_topic["/tasks/exit"]["exit_status"] == 9
    assert by_topic["/tasks/exit"]["id"] == by_topic["/tasks/exec-added"]["exec_id"]


def test_events_of_a_process_that_ends_at_once(kubelet: Kubelet, events: Events) -> None:
    """Never an exit before its start."""
    pod = kubelet.run_pod()
    for number in range(5):
        container = pod.start("/bin/true", name=f"short{number}")
        pod.wait(container)
        wait_until(lambda c=container: "/tasks/exit" in events.topics(c))
        topics = [topic for topic in events.topics(container) if topic in ("/tasks/start", "/tasks/exit")]
        assert topics == ["/tasks/start", "/tasks/exit"]


def test_the_event_of_a_memory_limit(kubelet: Kubelet, events: Events) -> None:
    pod = kubelet.run_pod()
    script = "x=$(head -c 4000000 /dev/zero | tr '\\0' a); y=; while :; do y=$y$x; done"
    limit = LinuxContainerResources(cpu_shares=2, memory_limit_in_bytes=128 << 20)
    container = pod.start("/bin/busybox", "sh", "-c", script, resources=limit)
    assert pod.wait(container, 60).exit_code == 137
    wait_until(lambda: "/tasks/oom" in events.topics(container))


# --- ctr


@pytest.fixture(params=[pytest.param(RUNC, marks=pytest.mark.heavy), OURS])
def runtime(request: pytest.FixtureRequest, node: daemon.Node, plain: str, encrypted: str) -> tuple[str, list[str], str]:
    """(name, options of `ctr run`, image): the image is in containerd's namespace k8s.io."""
    image = plain if request.param == RUNC else encrypted
    options = ["--runtime", RUNTIME[request.param], "--snapshotter", daemon.SNAPSHOTTER]
    if request.param == OURS:
        options += ["--annotation", f"enclave-cc.image={image}"]
    return request.param, options, normal_name(image)


def normal_name(image: str) -> str:
    """With a tag, as containerd's own store names it."""
    return image if ":" in image.rpartition("/")[2] else f"{image}:latest"


def test_ctr_runs_to_the_end(node: daemon.Node, runtime: tuple[str, list[str], str]) -> None:
    name, options, image = runtime
    done = node.ctr("run", "--rm", *options, image, f"end-{name}", "/bin/sh", "-c", "echo out; exit 6", check=False)
    assert (done.returncode, done.stdout) == (6, "out\n"), done.stderr
    assert f"end-{name}" not in node.ctr("tasks", "ls").stdout


def test_ctr_tasks(node: daemon.Node, runtime: tuple[str, list[str], str]) -> None:
    name, options, image = runtime
    task = f"task-{name}"
    node.ctr("run", "-d", *options, image, task, "/bin/sh", "-c", f"trap 'exit 8' TERM; {FOREVER}")
    try:
        assert states(node)[task] == "RUNNING"
        done = node.ctr("tasks", "exec", "--exec-id", "e1", task, "/bin/sh", "-c", "echo inside; exit 2", check=False)
        assert (done.returncode, done.stdout) == (2, "inside\n"), done.stderr
        assert len(node.ctr("tasks", "ps", task).stdout.splitlines()) >= 2
        assert "memory" in node.ctr("tasks", "metrics", task).stdout
        node.ctr("tasks", "pause", task)
        assert states(node)[task] == "PAUSED"
        node.ctr("tasks", "resume", task)
        assert states(node)[task] == "RUNNING"
        if name == OURS:
            refused = node.ctr("tasks", "checkpoint", task, check=False)
            assert refused.returncode and "unsupported: " in refused.stderr
        node.ctr("tasks", "kill", "-s", "SIGTERM", task)
        wait_until(lambda: states(node)[task] == "STOPPED")
        removed = node.ctr("tasks", "rm", task, check=False)
        assert removed.returncode in (0, 8), removed.stderr
    finally:
        node.ctr("tasks", "rm", "-f", task, check=False)
        node.ctr("containers", "rm", task, check=False)


def states(node: daemon.Node) -> dict[str, str]:
    return {words[0]: words[2] for words in (line.split() for line in node.ctr("tasks", "ls").stdout.splitlines()[1:])}


def test_ctr_logs_to_a_file(node: daemon.Node, runtime: tuple[str, list[str], str], testbed: testbeds.Testbed) -> None:
    name, options, image = runtime
    log = testbed.directory / f"log-{name}"
    task = f"file-{name}"
    node.ctr("run", "-d", "--log-uri", f"file://{log}", *options, image, task, "/bin/sh", "-c", "echo to a file; sleep 0.5")
    try:
        wait_until(lambda: log.exists() and log.read_text() == "to a file\n")
        wait_until(lambda: states(node)[task] == "STOPPED")
    finally:
        node.ctr("tasks", "rm", "-f", task, check=False)
        node.ctr("containers", "rm", task, check=False)


def test_ctr_logs_to_a_program(node: daemon.Node, runtime: tuple[str, list[str], str], testbed: testbeds.Testbed) -> None:
    """binary:// starts a program of the node with the container's stdout on 3, stderr on 4 and "ready" on 5."""
    name, options, image = runtime
    log, program, task = testbed.directory / f"binary-{name}", testbed.directory / f"logger-{name}", f"binary-{name}"
    program.write_text(f'#!/bin/sh\nexec 5>&-\necho "$CONTAINER_ID $CONTAINER_NAMESPACE" > {log}\nexec cat <&3 >> {log}\n')
    program.chmod(0o755)
    node.ctr(
        "run", "-d", "--log-uri", f"binary://{program}", *options, image, task, "/bin/sh", "-c", "echo to a program; sleep 0.5"
    )
    try:
        wait_until(lambda: log.exists() and log.read_text() == f"{task} {daemon.NAMESPACE}\nto a program\n")
    finally:
        node.ctr("tasks", "rm", "-f", task, check=False)
        node.ctr("containers", "rm", task, check=False)


def test_ctr_standard_input(node: daemon.Node, runtime: tuple[str, list[str], str]) -> None:
    """And its end, by CloseIO."""
    name, options, image = runtime
    command = [
        "ctr",
        "--address",
        str(node.address),
        "-n",
        daemon.NAMESPACE,
        "run",
        "--rm",
        *options,
        image,
        f"in-{name}",
        "/bin/cat",
    ]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=node.environment)
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(b"a line\n")
    process.stdin.flush()
    assert testbeds.read_line(process.stdout, seconds=20) == "a line"  # it runs: ctr would lose an earlier end of its input
    _, err = process.communicate(timeout=30)
    assert process.returncode == 0, err


def test_many_events_stay_in_order(enclaves: Kubelet, events: Events, cri: clients.Cri) -> None:
    pod = enclaves.run_pod()
    containers = [pod.shell("exit 0", name=f"c{n}") for n in range(4)]
    for container in containers:
        pod.wait(container)
    for container in containers:
        cri.remove(container)
    life = ["/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete"]
    for container in containers:
        wait_until(lambda c=container: "/tasks/delete" in events.topics(c))
        assert [topic for topic in events.topics(container) if topic in life] == life
