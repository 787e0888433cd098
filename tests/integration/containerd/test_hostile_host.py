"""HOST-009, HOST-011, HOST-013, HOST-014 on containerd: the node's root changes what Kubernetes asked for, forges annotations,
swaps sockets and sends broken frames. Refused with a coded error, and what runs beside it runs on.
"""

from __future__ import annotations

import json
import os
import random
import socket
import struct
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import cri as clients
import daemon
import grpc
import pytest
from cri_messages import ContainerState, Int64Value, Mount
from kubelet import Kubelet, Pod, wait_until

import testbed as testbeds
from enclave_cc.errors import TABLE, EnvironmentFault, PeerError
from enclave_cc.transport import ttrpc
from enclave_cc.wire.pb import agent as messages
from enclave_cc.wire.pb import codec, task
from enclave_cc.wire.pb.ttrpc import Any

pytestmark = pytest.mark.root

FOREVER = "while :; do sleep 0.1; done"
SEED = int(os.environ.get("ENCLAVE_CC_SEED", random.randrange(2**32)))


@pytest.fixture
def strict_pods(enclaves: Kubelet, strict: str, cri: clients.Cri) -> Kubelet:
    """Pods of an image whose owner allows nothing: entrypoint `/bin/sh -c`, user app:audio, COLOUR=blue, in /home/app."""
    cri.pull(strict)
    enclaves.image = strict
    return enclaves


def refusal(pod: Pod, *command: str, **fields: object) -> str:
    """The code of the error that the start of a container ends in; nothing of it may have run."""
    container = pod.create(*command, **fields)
    with pytest.raises(grpc.RpcError) as caught:
        pod.cri.start(container)
    status = pod.cri.container_status(container)
    assert status.state == ContainerState.EXITED
    assert pod.output(container) == ""
    return find_code(str(caught.value.details()))


def find_code(text: str) -> str:
    """The one of our codes that an error of containerd carries."""
    found = [code for code in sorted(TABLE, key=len, reverse=True) if f"{code}: " in text]
    assert found, text
    return found[0]


# --- a changed specification


def test_unchanged_it_runs(strict_pods: Kubelet) -> None:
    pod = strict_pods.run_pod()
    container = pod.start()
    assert pod.wait(container).exit_code == 0
    assert pod.output(container) == "uid=1000(app) gid=29(audio) groups=29(audio)\n/home/app\nblue\n"


CHANGES: dict[str, tuple[tuple[str, ...], dict[str, object]]] = {
    "command": (("/bin/cat", "/opt/secret"), {}),
    "arguments": ((), {"args": ("cat /opt/secret",)}),
    "environment": ((), {"env": {"LD_PRELOAD": "/data/spy.so"}}),
    "environment of the image": ((), {"env": {"COLOUR": "red"}}),
    "work directory": ((), {"working_dir": "/"}),
    "user": ((), {"run_as_user": Int64Value(0)}),
    "group": ((), {"run_as_user": Int64Value(1000), "run_as_group": Int64Value(0)}),
    "supplementary groups": ((), {"supplemental_groups": (0,)}),
    "capabilities": ((), {"add": ("SYS_ADMIN",)}),
    "volume": ((), {"mounts": (Mount("/bin", "/tmp"),)}),
    "file": ((), {"mounts": (Mount("/bin/sh", "/bin/busybox"),)}),
    "a host's file as resolv.conf's directory": ((), {"mounts": (Mount("/etc", "/etc"),)}),
    "process files": ((), {"mounts": (Mount("/proc", "/tmp"),)}),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_the_owner_does_not_allow_is_refused(strict_pods: Kubelet, change: str) -> None:
    command, fields = CHANGES[change]
    pod = strict_pods.run_pod()
    if change == "process files":  # containerd replaces nothing there; boot init's own /proc stays, or it is refused
        container = pod.create(*command, **fields)
        try:
            pod.cri.start(container)
        except grpc.RpcError as error:
            assert find_code(str(error.details())) in ("launch-denied", "launch-failed")
        else:
            assert pod.wait(container).exit_code == 0
            assert pod.output(container).endswith("/home/app\nblue\n")
        return
    assert refusal(pod, *command, **fields) == "launch-denied"


def test_a_refusal_leaves_the_pod_whole(strict_pods: Kubelet) -> None:
    pod = strict_pods.run_pod()
    assert refusal(pod, "/bin/cat", "/opt/secret", name="wrong") == "launch-denied"
    container = pod.start(name="right")
    assert pod.wait(container).exit_code == 0
    assert pod.output(container).endswith("blue\n")


def test_privileged_is_refused(strict_pods: Kubelet) -> None:
    """All capabilities at once, as kube-system pods like to have them."""
    pod = strict_pods.run_pod(privileged=True)
    assert refusal(pod, privileged=True) == "launch-denied"


@pytest.mark.parametrize("shared", [{"shared_pid": True}, {"host_pid": True}])
def test_a_shared_process_namespace_is_refused(enclaves: Kubelet, shared: dict[str, bool]) -> None:
    """It cannot hold across enclaves: the host, or another container, would see the workload's processes."""
    with pytest.raises((grpc.RpcError, AssertionError)) as caught:
        pod = enclaves.run_pod(**shared)
        code = refusal(pod, "/bin/sh", "-c", "ps")
        raise AssertionError(code)
    assert "launch-failed" in str(caught.value)


def run_by_ctr(
    node: daemon.Node, image: str, name: str, *words: str, command: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    """The host's own specification, around Kubernetes: `ctr run` with the image's annotation."""
    options = ["--runtime", "io.containerd.rune.v2", "--snapshotter", daemon.SNAPSHOTTER]
    if not any(word.startswith("enclave-cc.image=") for word in words):
        options += ["--annotation", f"enclave-cc.image={image}"]
    tagged = image if ":" in image.rpartition("/")[2] else f"{image}:latest"
    return node.ctr("run", "--rm", *options, *words, tagged, name, *command, check=False)


@pytest.mark.parametrize(
    ("words", "command"),
    [
        pytest.param(("--env", "COLOUR=red"), (), id="environment"),
        pytest.param(("--mount", "type=bind,src=/tmp,dst=/bin,options=rbind:rw"), (), id="mount"),
        pytest.param(("--cwd", "/"), (), id="work directory"),
        pytest.param((), ("/bin/cat", "/opt/secret"), id="command"),
    ],
)
def test_a_specification_of_the_hosts_own(
    node: daemon.Node, strict_pods: Kubelet, canary: str, words: tuple[str, ...], command: tuple[str, ...]
) -> None:
    done = run_by_ctr(node, strict_pods.image, f"own-{os.urandom(4).hex()}", *words, command=command)
    assert done.returncode != 0
    assert find_code(done.stderr) == "launch-denied"
    assert canary not in done.stdout


# --- forged annotations


def test_a_forged_image_is_pulled_by_its_own_policy(node: daemon.Node, strict_pods: Kubelet, busybox: str) -> None:
    """The host names the strict image where containerd pulled the open one: the strict image's policy counts."""
    done = run_by_ctr(
        node, busybox, "forged", "--annotation", f"enclave-cc.image={strict_pods.image}", command=("/bin/cat", "/opt/secret")
    )
    assert done.returncode != 0
    assert done.stdout == ""
    assert find_code(done.stderr) in ("launch-denied", "digest-mismatch")


@pytest.mark.parametrize("image", ["", "../../etc/passwd", "a b", "http://host/x", "x" * 5000, "127.0.0.1:1/no/such"])
def test_an_image_that_is_none(node: daemon.Node, strict_pods: Kubelet, image: str) -> None:
    done = run_by_ctr(node, strict_pods.image, f"none-{os.urandom(4).hex()}", "--annotation", f"enclave-cc.image={image}")
    assert done.returncode != 0
    assert find_code(done.stderr) in ("bad-reference", "registry-unreachable", "registry-failed", "image-not-found", "too-large")


def test_a_forged_sandbox_is_none(node: daemon.Node, strict_pods: Kubelet, canary: str) -> None:
    """A container that says it is the pod's sandbox runs as the host's own program: without an enclave, hence without keys."""
    done = run_by_ctr(
        node,
        strict_pods.image,
        "sandbox",
        "--annotation",
        "io.kubernetes.cri.container-type=sandbox",
        "--annotation",
        "io.kubernetes.cri.sandbox-id=sandbox",
        command=("/bin/cat", "/opt/secret"),
    )
    assert done.returncode != 0
    assert canary not in done.stdout + done.stderr


def test_a_forged_pod(node: daemon.Node, enclaves: Kubelet) -> None:
    """A task that says it is of a pod that is not there gets a pod of that name to itself, or an error: never another's."""
    pod = enclaves.run_pod()
    container = pod.shell(f"echo up; {FOREVER}")
    wait_until(lambda: pod.output(container) == "up\n")
    done = run_by_ctr(
        node, enclaves.image, "stray", "--annotation", f"io.kubernetes.cri.sandbox-id={os.urandom(32).hex()}", command=("/bin/ps",)
    )
    assert "sleep" not in done.stdout
    assert pod.cri.container_status(container).state == ContainerState.RUNNING


# --- an image that is not the one containerd knows


def make_own_image(sources: Path, name: str) -> str:
    """busybox with a configuration of its own: CRI takes images of one configuration for one image."""
    return testbeds.make_image(sources, name, sources.parent / "root", "--config.cmd", "/bin/sh", "--config.label", f"name={name}")


def test_another_image_than_the_host_knows_is_refused(
    enclaves: Kubelet, testbed: testbeds.Testbed, sources: Path, cri: clients.Cri
) -> None:
    """The tag moves after containerd's pull: what the enclave would run is not what the cluster was told."""
    source = make_own_image(sources, "moving")
    image = testbed.publish(source, "moving", "--allow", "all")
    cri.pull(image)
    pod = enclaves.run_pod()
    assert pod.run("echo first", name="first", image=image) == (0, "first\n")
    testbed.publish(source, "moving", "--allow", "all")  # other keys, hence another manifest
    assert refusal(pod, "/bin/sh", "-c", "echo second", name="second", image=image) == "digest-mismatch"
    cri.pull(image)
    assert pod.run("echo third", name="third", image=image) == (0, "third\n")


# --- memory that containers share


def test_shared_memory_needs_the_owners_word(enclaves: Kubelet, testbed: testbeds.Testbed, sources: Path, cri: clients.Cri) -> None:
    """/dev/shm of a pod is the host's memory: without the owner's word each container has one of its own."""
    image = testbed.publish(make_own_image(sources, "alone"), "alone", "--allow", "command")
    cri.pull(image)
    pod = enclaves.run_pod()
    assert pod.run("echo secret > /dev/shm/word; cat /dev/shm/word", name="writer", image=image) == (0, "secret\n")
    assert pod.run("cat /dev/shm/word 2>/dev/null", name="reader", image=image) == (1, "")
    shared = [path for path in enclaves.node.state.rglob("shm/*") if path.is_file()]
    assert shared == []


# --- exec


def test_exec_needs_the_owners_word(enclaves: Kubelet, strict_server: str) -> None:
    enclaves.image = strict_server
    pod = enclaves.run_pod()
    container = pod.start()
    wait_until(lambda: pod.output(container) == "up\n")
    with pytest.raises(grpc.RpcError) as caught:
        pod.cri.exec_sync(container, "/bin/cat", "/opt/secret")
    assert find_code(str(caught.value.details())) == "launch-denied"
    assert pod.cri.container_status(container).state == ContainerState.RUNNING


# --- sockets


def agent_socket(testbed: testbeds.Testbed, pod: Pod) -> Path:
    """The agent's socket of a pod: the one that its shim's process holds open in the engine's directory."""
    for directory in (testbed.run_directory / "pods").iterdir():
        document = json.loads((directory / "pod.json").read_text())
        if pod.id in json.dumps(document):
            return next(directory.rglob("agent.sock"))
    raise AssertionError("the pod has no directory")


def shim_socket(pod: Pod) -> str:
    bundle = pod.kubelet.node.state / f"io.containerd.runtime.v2.task/{daemon.NAMESPACE}/{pod.id}"
    return (bundle / "address").read_text().removeprefix("unix://")


def engine_ids(testbed: testbeds.Testbed, pod: Pod) -> list[str]:
    with ttrpc.Client(str(agent_socket(testbed, pod)), deadline=10) as client:
        answer = client.call(messages.AGENT_SERVICE, "GetStatus", b"")
    return [container.container_id for container in codec.decode(messages.GetStatusResponse, answer).containers]


def test_one_pods_agent_knows_nothing_of_anothers_container(enclaves: Kubelet, testbed: testbeds.Testbed) -> None:
    """A shim that asks its agent for another pod's container."""
    first, second = enclaves.run_pod(), enclaves.run_pod()
    for pod in (first, second):
        container = pod.shell(f"echo up; {FOREVER}")
        wait_until(lambda p=pod, c=container: p.output(c) == "up\n")
    (theirs,) = engine_ids(testbed, second)
    assert theirs not in engine_ids(testbed, first)
    calls: list[tuple[str, str, object]] = [
        (messages.HANDOVER_SERVICE, "Begin", messages.HandoverRequest(container_id=theirs, message=b"\0" * 64)),
        (messages.HANDOVER_SERVICE, "Finish", messages.HandoverRequest(container_id=theirs, message=b"\0" * 64)),
        (messages.AGENT_SERVICE, "GetPullProgress", messages.GetPullProgressRequest(container_id=theirs)),
        (messages.AGENT_SERVICE, "CreateContainer", messages.CreateContainerRequest(container_id=theirs, image=enclaves.image)),
    ]
    with ttrpc.Client(str(agent_socket(testbed, first)), deadline=10) as client:
        for service, method, request in calls:
            with pytest.raises(PeerError) as caught:
                client.call(service, method, codec.encode(request))
            assert caught.value.code in {"not-found", "handover-refused", "wrong-state", "malformed"}, method


def test_a_handover_is_not_given_twice(enclaves: Kubelet, testbed: testbeds.Testbed) -> None:
    """A host program that poses as the app enclave of a container that runs already, or is known to the agent only."""
    pod = enclaves.run_pod()
    container = pod.shell(f"echo up; {FOREVER}")
    wait_until(lambda: pod.output(container) == "up\n")
    (known,) = engine_ids(testbed, pod)
    with ttrpc.Client(str(agent_socket(testbed, pod)), deadline=10) as client:
        for message in (b"", b"\0" * 64, os.urandom(512)):
            with pytest.raises(PeerError) as caught:
                client.call(
                    messages.HANDOVER_SERVICE, "Begin", codec.encode(messages.HandoverRequest(container_id=known, message=message))
                )
            assert caught.value.code in {"handover-replayed", "handover-refused", "wrong-state", "malformed", "identity-refused"}
    assert pod.exec(container, "echo alive")[1] == "alive\n"


def put_in_place(other: Path, place: Path) -> Callable[[], None]:
    """The host puts one pod's socket in the place of another's; call what is returned to undo it."""
    kept = place.with_suffix(".kept")
    place.rename(kept)
    os.link(other, place)

    def undo() -> None:
        place.unlink()
        kept.rename(place)

    return undo


def test_an_app_that_is_led_to_another_pods_agent(enclaves: Kubelet, testbed: testbeds.Testbed, canary: str) -> None:
    """The shim has its own agent pull; the app enclave finds the other's socket. There its container is not known."""
    first, second = enclaves.run_pod(), enclaves.run_pod()
    for pod in (first, second):
        assert pod.run("echo warm") == (0, "warm\n")  # the shim keeps its connection
    undo = put_in_place(agent_socket(testbed, first), agent_socket(testbed, second))
    container = second.create("/bin/cat", "/opt/secret", name="led")
    handed = [count_handovers(testbed, pod) for pod in (first, second)]
    try:
        with ThreadPoolExecutor(1) as pool:
            starting = pool.submit(second.cri.start, container)
            wait_until(lambda: "created" in engine_states(testbed, first, second))  # by the second's agent, for nobody
            time.sleep(1)
            assert not starting.done()
            assert [count_handovers(testbed, pod) for pod in (first, second)] == handed
            second.kubelet.node.ctr("tasks", "kill", "-s", "SIGKILL", container)
            with pytest.raises(grpc.RpcError) as caught:
                starting.result(30)
        assert find_code(str(caught.value.details())) == "app-died"
        assert second.output(container) == ""
    finally:
        undo()
    second.end()
    assert first.run("echo again", name="again") == (0, "again\n")


def count_handovers(testbed: testbeds.Testbed, pod: Pod) -> int:
    log = next(agent_socket(testbed, pod).parents[1].glob("agent.log"))
    return log.read_text().count("handed over")


def engine_states(testbed: testbeds.Testbed, *pods: Pod) -> set[str]:
    """The states that the agents know containers in, by whatever socket each is reached now."""
    found: set[str] = set()
    for pod in pods:
        place = agent_socket(testbed, pod)
        kept = place.with_suffix(".kept")
        with ttrpc.Client(str(kept if kept.exists() else place), deadline=10) as client:
            answer = client.call(messages.AGENT_SERVICE, "GetStatus", b"")
        found |= {container.state for container in codec.decode(messages.GetStatusResponse, answer).containers}
    return found


def test_a_shim_that_is_led_to_another_pods_agent(strict_pods: Kubelet, testbed: testbeds.Testbed, canary: str) -> None:
    """Shim and app enclave both find the other pod's agent: it judges as the first would have, by its owner's policy."""
    first, second = strict_pods.run_pod(), strict_pods.run_pod()
    container = first.start()
    assert first.wait(container).exit_code == 0
    wait_until(lambda: agent_socket(testbed, second).exists())
    undo = put_in_place(agent_socket(testbed, first), agent_socket(testbed, second))
    try:
        assert refusal(second, "/bin/cat", "/opt/secret", name="changed") == "launch-denied"
        assert refusal(second, name="longer", env={"LD_PRELOAD": "/x"}) == "launch-denied"
        unchanged = second.start(name="unchanged")
        assert second.wait(unchanged).exit_code == 0
        assert second.output(unchanged) == "uid=1000(app) gid=29(audio) groups=29(audio)\n/home/app\nblue\n"
    finally:
        undo()
    second.end()
    assert first.wait(first.start(name="again")).exit_code == 0


def test_a_shim_serves_its_own_pod_only(enclaves: Kubelet) -> None:
    """The host asks one pod's shim for another's container, by each of its methods, and to make it."""
    first, second = enclaves.run_pod(), enclaves.run_pod()
    container = second.shell(f"echo up; {FOREVER}")
    wait_until(lambda: second.output(container) == "up\n")
    bundle = enclaves.node.state / f"io.containerd.runtime.v2.task/{daemon.NAMESPACE}"
    process = b'{"args": ["/bin/true"]}'
    with ttrpc.Client(shim_socket(first), deadline=10) as client:
        for service in task.SERVICES:
            for method in ("State", "Start", "Delete", "Pids", "Pause", "Resume", "Stats", "Wait", "Checkpoint"):
                with pytest.raises(PeerError) as caught:
                    client.call(service, method, codec.encode(task.ProcessRequest(container)))
                assert caught.value.code == "not-found", method
            for method, request in (
                ("Kill", codec.encode(task.KillRequest(id=container, signal=9))),
                ("Update", codec.encode(task.UpdateTaskRequest(id=container, resources=Any("x", b"{}")))),
                ("Exec", codec.encode(task.ExecProcessRequest(id=container, exec_id="x", spec=Any("x", process)))),
            ):
                with pytest.raises(PeerError) as caught:
                    client.call(service, method, request)
                assert caught.value.code == "not-found", method
            for identifier in (container, second.id):
                create = task.CreateTaskRequest(id=identifier, bundle=str(bundle / identifier))
                with pytest.raises(PeerError) as caught:
                    client.call(service, "Create", codec.encode(create))
                assert caught.value.code == "usage"
                assert "of another" in caught.value.what
    first.end()  # undoes what the first has noted, and nothing of the second
    assert second.exec(container, "echo alive")[1] == "alive\n"
    assert second.run("echo next", name="next") == (0, "next\n")


def test_a_container_that_says_it_is_of_a_pod(node: daemon.Node, strict_pods: Kubelet, canary: str) -> None:
    """The host may put any container into a pod: the agent asks its owner's policy, as for every other."""
    pod = strict_pods.run_pod()
    words = ("--annotation", f"io.kubernetes.cri.sandbox-id={pod.id}")
    done = run_by_ctr(node, strict_pods.image, f"joins-{os.urandom(4).hex()}", *words, command=("/bin/cat", "/opt/secret"))
    assert done.returncode != 0
    assert find_code(done.stderr) == "launch-denied"
    assert canary not in done.stdout
    container = pod.start()
    assert pod.wait(container).exit_code == 0
    assert pod.output(container).endswith("/home/app\nblue\n")


def frame(size: int, stream: int, kind: int, payload: bytes, flags: int = 0) -> bytes:
    return struct.pack(">IIBB", size, stream, kind, flags) + payload


def hostile_frames(rng: random.Random) -> list[bytes]:
    """Oversized, truncated, of unknown type, with streams that cannot be, and noise."""
    good = codec.encode(task.TaskRequest("x"))
    frames = [
        frame(0xFFFFFFFF, 1, 1, b""),
        frame(0x7FFFFFFF, 1, 1, b"x" * 100),
        frame((4 << 20) + 1, 1, 1, b"x" * 4096),
        frame(len(good), 0, 1, good),
        frame(len(good), 2, 1, good),
        frame(len(good), 1, 2, good),
        frame(len(good), 1, 9, good),
        frame(len(good), 0xFFFFFFFF, 1, good),
        frame(5, 1, 1, b"\xff\xff\xff\xff\xff"),
        frame(0, 1, 1, b"") * 50,
        frame(100, 1, 1, b"short"),
        b"GET / HTTP/1.1\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"",
    ]
    frames += [rng.randbytes(rng.randrange(1, 400)) for _ in range(40)]
    frames += [
        frame(size, rng.randrange(2**32), rng.randrange(256), rng.randbytes(size)) for size in rng.choices(range(1, 300), k=40)
    ]
    return frames


def throw(path: str, data: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(5)
        client.connect(path)
        with suppress(OSError):
            client.sendall(data)
            client.shutdown(socket.SHUT_WR)
            while client.recv(1 << 16):
                pass


@pytest.mark.parametrize("target", ["shim", "agent"])
def test_broken_frames(enclaves: Kubelet, testbed: testbeds.Testbed, target: str) -> None:
    print(f"seed {SEED}")
    rng = random.Random(SEED)
    pod = enclaves.run_pod()
    container = pod.shell(f"echo up; {FOREVER}")
    wait_until(lambda: pod.output(container) == "up\n")
    path = shim_socket(pod) if target == "shim" else str(agent_socket(testbed, pod))
    for data in hostile_frames(rng):
        throw(path, data)
    # Connections that say nothing, or never finish, hold nobody up.
    idle = [socket.socket(socket.AF_UNIX) for _ in range(50)]
    try:
        for client in idle:
            client.connect(path)
            client.send(frame(100, 1, 1, b"never finished"))
        assert pod.exec(container, "echo alive") == (0, "alive\n", "")
        assert pod.run("echo next", name="next") == (0, "next\n")
    finally:
        for client in idle:
            client.close()


@pytest.mark.parametrize("target", ["shim", "agent"])
def test_broken_messages(enclaves: Kubelet, testbed: testbeds.Testbed, target: str) -> None:
    """Every method with noise for a request: a coded error, and the process serves on."""
    rng = random.Random(SEED)
    pod = enclaves.run_pod()
    container = pod.shell(f"echo up; {FOREVER}")
    wait_until(lambda: pod.output(container) == "up\n")
    if target == "shim":
        path = shim_socket(pod)
        names = "State Create Start Delete Pids Pause Resume Checkpoint Kill Exec ResizePty CloseIO Update Wait Stats Connect"
        methods = [(service, name) for service in task.SERVICES for name in names.split()]
    else:
        path = str(agent_socket(testbed, pod))
        methods = [
            (messages.AGENT_SERVICE, name) for name in ("PullImage", "GetPullProgress", "CreateContainer", "RemoveContainer")
        ]
        methods += [(messages.HANDOVER_SERVICE, name) for name in ("Begin", "Finish")]
    methods += [("no.such.Service", "State"), (methods[0][0], "NoSuchMethod"), ("", "")]
    noise: list[Callable[[], bytes]] = [
        lambda: b"\xff" * 9,
        lambda: codec.encode(task.TaskRequest("no-such-container")),
        lambda: codec.encode(task.TaskRequest("../../../etc")),
        lambda: codec.encode(task.TaskRequest("x" * 100_000)),
        lambda: rng.randbytes(rng.randrange(1, 200)),
    ]
    for service, method in methods:
        for make in noise:
            with ttrpc.Client(path, deadline=10) as client:
                try:
                    client.call(service, method, make())
                except PeerError as error:
                    assert error.code in TABLE, (service, method)
                    assert error.code not in ("internal", "deadline"), (service, method, str(error))
                except EnvironmentFault as fault:
                    raise AssertionError((service, method)) from fault
    assert pod.cri.container_status(container).state == ContainerState.RUNNING
    assert pod.exec(container, "echo alive") == (0, "alive\n", "")


# --- what the host can read


def test_no_plaintext_on_the_node(enclaves: Kubelet, testbed: testbeds.Testbed, canary: str) -> None:
    """While the pod runs and after: containerd's content store, snapshots, state, the engine's directories, logs, the registry."""
    node = enclaves.node
    pod = enclaves.run_pod()
    container = pod.shell(f"sha256sum /opt/secret; {FOREVER}")
    wait_until(lambda: "/opt/secret" in pod.output(container))
    os.sync()
    directories = (node.root, node.state, node.snapshots, testbed.state, testbed.run_directory)
    # The ordinary image of other tests has the same file: its snapshots and its blob are plaintext by intent.
    ordinary = {path for path in testbed.find_plaintext(canary.encode(), *directories) if "/snapshots/" in str(path)}
    assert set(testbed.find_plaintext(canary.encode(), *directories)) == ordinary
    assert all(is_ordinary(path, node) for path in ordinary), ordinary
    pod.end()
    assert set(testbed.find_plaintext(canary.encode(), *directories)) <= ordinary


def is_ordinary(path: Path, node: daemon.Node) -> bool:
    """Whether a file lies in a layer that the ordinary image was unpacked to: its snapshot has no guest's name."""
    number = path.relative_to(node.snapshots / "snapshots").parts[0]
    return number.isdigit() and (node.snapshots / "snapshots" / number / "fs/opt/secret").exists()


def test_the_host_downloads_no_layer(
    enclaves: Kubelet, testbed: testbeds.Testbed, sources: Path, cri: clients.Cri, node: daemon.Node
) -> None:
    """By the registry's own log: containerd asks for manifest and configuration, the agent alone for layers."""
    image = testbed.publish(make_own_image(sources, "watched"), "watched", "--allow", "all")
    log = testbed.directory / "registry.log"
    before = len(daemon.read_blob_requests(log))
    cri.pull(image)
    pod = enclaves.run_pod()
    assert pod.run("head -c 6 /opt/secret", image=image) == (0, "CANARY")
    time.sleep(0.2)
    requests = daemon.read_blob_requests(log)[before:]
    manifest = json.loads((manifest_file(testbed, "watched")).read_bytes())
    layers = {layer["digest"] for layer in manifest["layers"]}
    by_host = {digest for agent, digest in requests if agent.startswith("containerd/")}
    assert by_host & layers == set()
    assert by_host == {manifest["config"]["digest"]}
    assert {digest for agent, digest in requests if not agent.startswith("containerd/")} >= layers
    assert layers & node.content_digests() == set()


def manifest_file(testbed: testbeds.Testbed, name: str) -> Path:
    """The manifest's file in the registry's storage."""
    top = testbed.registry_directory / "docker/registry/v2"
    digest = (top / f"repositories/{name}/_manifests/tags/latest/current/link").read_text().removeprefix("sha256:")
    return top / f"blobs/sha256/{digest[:2]}/{digest}/data"
