"""The agent in its pod's own network, which is the default: registry and KBS lie where pods reach them, and the registry's
name is known to one DNS server only, which the pods are told.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import struct
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import cri as clients
import daemon
import grpc
import leaks
import pytest
from cri_messages import DnsConfig, PortMapping, SandboxState
from kubelet import OURS, RUNC, Kubelet, Pod, remove_parents, wait_until
from streaming import PortForward

import testbed as testbeds

pytestmark = pytest.mark.root

FOREVER = "while :; do sleep 0.1; done"
# One for this run: an address of the node that is not on its loopback, as pods see it.
ADDRESS = f"10.98.{int.from_bytes(os.urandom(1), 'big')}.1"
NAME = "registry.test"
DNS = DnsConfig((ADDRESS,), (), ("timeout:2", "attempts:2"))
NO_DNS = DnsConfig((ADDRESS.removesuffix("1") + "2",), (), ("timeout:1", "attempts:1"))


class NameServer:
    """Answers for `NAME` with `ADDRESS`, and for nothing else (RFC 1035)."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []  # (address of who asked, name)
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind((ADDRESS, 53))
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def close(self) -> None:
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join(5)

    def _serve(self) -> None:
        while True:
            try:
                query, peer = self._socket.recvfrom(4096)
            except OSError:
                return
            if not query:
                return
            labels, at = [], 12
            while query[at]:
                labels.append(query[at + 1 : at + 1 + query[at]].decode())
                at += 1 + query[at]
            question = query[12 : at + 5]
            (kind,) = struct.unpack(">H", query[at + 1 : at + 3])
            name = ".".join(labels)
            self.asked.append((peer[0], name))
            answers = 1 if name == NAME and kind == 1 else 0
            flags = 0x8180 if name == NAME else 0x8183
            answer = struct.pack(">HHHIH", 0xC00C, 1, 1, 60, 4) + socket.inet_aton(ADDRESS) if answers else b""
            reply = query[:2] + struct.pack(">HHHHH", flags, 1, answers, 0, 0) + question + answer
            self._socket.sendto(reply, peer)


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    subprocess.run(["ip", "address", "add", f"{ADDRESS}/32", "dev", "lo"], check=True)
    yield ADDRESS
    subprocess.run(["ip", "address", "del", f"{ADDRESS}/32", "dev", "lo"], check=True)


@pytest.fixture(scope="module")
def names(address: str) -> Iterator[NameServer]:
    server = NameServer()
    yield server
    server.close()


@pytest.fixture(scope="module")
def site(address: str) -> Iterator[testbeds.Testbed]:
    directory = Path(tempfile.mkdtemp(prefix="ecc-", dir="/tmp"))
    with testbeds.running(directory / "s", host=address) as running:
        yield running
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="module")
def pods_node(site: testbeds.Testbed, names: NameServer) -> Iterator[daemon.Node]:
    directory = Path(tempfile.mkdtemp(prefix="ecc-", dir="/tmp"))
    named = named_host(site)
    configuration = directory / "config.toml"
    text = site.configuration.read_text()
    assert "[network]" not in text
    configuration.write_text(text.replace(f'["{site.registry_host}"]', f'["{site.registry_host}", "{named}"]'))
    registries = {site.registry_host: f"http://{site.registry_host}", named: f"http://{site.registry_host}"}
    portmap: dict[str, object] = {"type": "portmap", "capabilities": {"portMappings": True}}
    node = daemon.running(
        directory / "c", site.registry_host, configuration=configuration, registries=registries, plugins=(portmap,)
    )
    with node as running:
        yield running
    remove_parents()
    shutil.rmtree(directory, ignore_errors=True)


def named_host(site: testbeds.Testbed) -> str:
    return f"{NAME}:{site.registry_host.rpartition(':')[2]}"


@pytest.fixture(scope="module")
def pods_cri(pods_node: daemon.Node) -> Iterator[clients.Cri]:
    client = clients.Cri(pods_node.address)
    client.pull(pods_node.pause)
    yield client
    client.close()


@pytest.fixture(scope="module")
def published(site: testbeds.Testbed, sources: Path, pods_cri: clients.Cri, tmp_path_factory: pytest.TempPathFactory) -> str:
    """busybox under the registry's name, which only its owner resolves on this machine, by a hosts file of his own."""
    hosts = tmp_path_factory.mktemp("owner") / "hosts"
    hosts.write_text(f"127.0.0.1 localhost\n{ADDRESS} {NAME}\n")
    reference = f"{named_host(site)}/busybox"
    publish = [testbeds.ENCLAVE_CC, "image", "publish", f"{sources}:busybox", reference, "--insecure", "--allow", "all"]
    command = ["unshare", "--mount", "sh", "-c", 'mount --bind "$0" /etc/hosts && exec "$@"', hosts, *publish]
    subprocess.run(command, check=True, capture_output=True, env=site.environment)
    pods_cri.pull(reference)
    return reference


@pytest.fixture(scope="module")
def plain_image(site: testbeds.Testbed, sources: Path, pods_cri: clients.Cri) -> str:
    reference = f"{site.registry_host}/ordinary:latest"
    daemon.push_layout(f"{sources}:busybox", reference)
    pods_cri.pull(reference)
    return reference


@pytest.fixture
def enclaves(pods_node: daemon.Node, pods_cri: clients.Cri, tmp_path: Path, published: str) -> Iterator[Kubelet]:
    with closing(Kubelet(pods_node, pods_cri, tmp_path / "logs", OURS, published)) as kubelet:
        yield kubelet


@pytest.fixture(params=[RUNC, OURS])
def kubelet(
    request: pytest.FixtureRequest,
    pods_node: daemon.Node,
    pods_cri: clients.Cri,
    tmp_path: Path,
    published: str,
    plain_image: str,
) -> Iterator[Kubelet]:
    image = published if request.param == OURS else plain_image
    with closing(Kubelet(pods_node, pods_cri, tmp_path / "logs", request.param, image)) as kubelet:
        yield kubelet


def find_agent(pod: Pod) -> int:
    """The node's pid of the pod's agent enclave."""
    assert pod.config.linux is not None
    for directory in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            ours = pod.config.linux.cgroup_parent in (directory / "cgroup").read_text()
            if ours and b"enclave_cc.enclave.agent" in (directory / "cmdline").read_bytes():
                return int(directory.name)
    raise AssertionError("the pod has no agent")


def network_of(pid: int) -> str:
    return os.readlink(f"/proc/{pid}/ns/net")


def address_of(pod: Pod) -> str:
    network = pod.cri.pod_status(pod.id).network
    assert network is not None
    return network.ip


def namespace_of(pod: Pod) -> Path:
    """Where the network's plug-ins keep the pod's network namespace."""
    spec = json.loads(pod.cri.pod_information(pod.id)["info"])["runtimeSpec"]
    return Path(next(entry["path"] for entry in spec["linux"]["namespaces"] if entry["type"] == "network"))


def test_the_agent_is_in_its_pods_network(enclaves: Kubelet, site: testbeds.Testbed, names: NameServer) -> None:
    """Two pods at once. What an agent asks of DNS and registry comes from the address of its pod; the workload is beside it."""
    pods = [enclaves.run_pod(dns=DNS) for _ in range(2)]
    started = [(pod, pod.shell(f"echo up; {FOREVER}")) for pod in pods]
    for pod, container in started:
        wait_until(lambda p=pod, c=container: p.output(c) == "up\n")
        agent = network_of(find_agent(pod))
        assert agent != network_of(os.getpid())
        assert pod.exec(container, "/bin/busybox readlink /proc/self/ns/net")[1] == agent + "\n"
        assert (address_of(pod), NAME) in names.asked
        log = (site.directory / "registry.log").read_text()
        assert re.search(rf'http.request.remoteaddr="{re.escape(address_of(pod))}:\d+"', log)
    assert network_of(find_agent(pods[0])) != network_of(find_agent(pods[1]))
    assert address_of(pods[0]) != address_of(pods[1])


def test_the_workload_has_the_pods_names(enclaves: Kubelet) -> None:
    pod = enclaves.run_pod(dns=DNS)
    assert pod.run(f"grep nameserver /etc/resolv.conf; wget -q -O - http://{named(enclaves)}/v2/") == (
        0,
        f"nameserver {ADDRESS}\n{{}}",
    )


def named(kubelet: Kubelet) -> str:
    return kubelet.image.partition("/")[0]


def test_a_name_that_the_pod_cannot_resolve(enclaves: Kubelet) -> None:
    """Told as what it is; the pod beside it, with another server, is not touched by it."""
    pod, other = enclaves.run_pod(dns=NO_DNS), enclaves.run_pod(dns=DNS)
    container = pod.create("/bin/true")
    with pytest.raises(grpc.RpcError, match="registry-unreachable") as caught:
        pod.cri.start(container)
    assert NAME in str(caught.value.details())
    assert other.run("echo well") == (0, "well\n")
    pod.end()


def test_a_pod_of_the_nodes_network_with_a_server_of_its_own(enclaves: Kubelet) -> None:
    """dnsPolicy ClusterFirstWithHostNet: the agent is in the node's network too, and asks the pod's server."""
    pod = enclaves.run_pod(dns=DNS, host_network=True)
    container = pod.shell(f"echo up; {FOREVER}")
    wait_until(lambda: pod.output(container) == "up\n")
    assert network_of(find_agent(pod)) == network_of(os.getpid())


def test_containers_of_a_pod_and_its_neighbour(kubelet: Kubelet) -> None:
    """By loopback inside the pod, by address from the next."""
    dns = DNS
    pod, other = kubelet.run_pod(dns=dns), kubelet.run_pod(dns=dns)
    pod.start("/bin/busybox", "httpd", "-f", "-p", "8080", "-h", "/etc", name="server")
    ask = "for i in $(seq 100); do wget -q -O - http://{}:8080/group && exit; sleep 0.1; done; exit 1"
    expected = (0, "root:x:0:\napp:x:1000:\naudio:x:29:app\n")
    assert pod.run(ask.format("127.0.0.1"), name="client") == expected
    assert other.run(ask.format(address_of(pod))) == expected
    assert other.run("wget -q -O - http://127.0.0.1:8080/group", name="own")[0] != 0


def test_host_ports(kubelet: Kubelet) -> None:
    port = testbeds.free_port()
    pod = kubelet.run_pod(dns=DNS, ports=(PortMapping(0, 8080, port),))
    pod.start("/bin/busybox", "httpd", "-f", "-p", "8080", "-h", "/etc", name="server")
    other = kubelet.run_pod(dns=DNS)
    script = f"for i in $(seq 50); do wget -q -O - http://{ADDRESS}:{port}/group && exit; sleep 0.1; done; exit 1"
    assert other.run(script)[1].startswith("root:x:0:\n")


def test_port_forward(kubelet: Kubelet) -> None:
    """kubectl port-forward: containerd goes into the pod's network by itself."""
    pod = kubelet.run_pod(dns=DNS)
    pod.start("/bin/busybox", "httpd", "-f", "-p", "127.0.0.1:8080", "-h", "/etc", name="server")
    ready = "for i in $(seq 100); do wget -q -O /dev/null http://127.0.0.1:8080/group && exit; sleep 0.1; done; exit 1"
    assert pod.run(ready, name="ready")[0] == 0
    with PortForward(pod.cri.port_forward_url(pod.id, 8080)) as stream:
        stream.write(b"GET /group HTTP/1.0\r\n\r\n")
        assert b"200 OK" in stream.read_until_received(b"audio:x:29:app\n")
    with PortForward(pod.cri.port_forward_url(pod.id, 8081)) as stream:
        stream.write(b"anybody?")
        assert b"refused" in stream.read_error()


def test_nothing_is_left(enclaves: Kubelet, site: testbeds.Testbed) -> None:
    """Agents that hold a network namespace open would keep it, its interface and its address."""
    warm = enclaves.run_pod(dns=DNS)
    assert warm.run("true")[0] == 0
    warm.end()
    before, interfaces = leaks.take(enclaves.node, site), set(os.listdir("/sys/class/net"))
    pods = [enclaves.run_pod(dns=DNS) for _ in range(3)]
    for pod in pods:
        pod.shell(FOREVER)
        assert len(set(os.listdir("/sys/class/net")) - interfaces) >= 1
    spaces = [namespace_of(pod) for pod in pods]
    for pod in pods:
        pod.end()
    leaks.expect_none(before, enclaves.node, site)
    wait_until(lambda: not set(os.listdir("/sys/class/net")) - interfaces)
    assert not any(space.exists() for space in spaces)


@pytest.mark.parametrize("moment", ["while it runs", "between stop and remove"])
def test_a_network_namespace_that_is_gone(enclaves: Kubelet, site: testbeds.Testbed, moment: str) -> None:
    """Somebody cleans up /run/netns, or the node's network is made anew: the pod still ends, and leaves nothing."""
    before = leaks.take(enclaves.node, site)
    pod = enclaves.run_pod(dns=DNS)
    container = pod.shell(f"echo up; {FOREVER}")
    wait_until(lambda: pod.output(container) == "up\n")
    space = namespace_of(pod)
    if moment == "while it runs":
        remove_namespace(space)
        assert pod.exec(container, "echo alive")[1] == "alive\n"
        assert pod.run("ls /sys/class/net", name="late")[1].split() == ["eth0", "lo"]  # by the pause container it is there
        pod.cri.stop_pod(pod.id)
    else:
        pod.cri.stop_pod(pod.id)
        remove_namespace(space)
    assert pod.cri.pod_status(pod.id).state == SandboxState.NOTREADY
    pod.cri.stop_pod(pod.id)
    pod.end()
    leaks.expect_none({**before, "addresses": leaks.take(enclaves.node, site)["addresses"]}, enclaves.node, site)


def remove_namespace(path: Path) -> None:
    subprocess.run(["umount", path], check=False, capture_output=True)
    path.unlink(missing_ok=True)


def test_a_dead_agent_gives_the_network_back(enclaves: Kubelet, site: testbeds.Testbed) -> None:
    before = leaks.take(enclaves.node, site)
    pod = enclaves.run_pod(dns=DNS)
    container = pod.shell(f"echo up; {FOREVER}")
    wait_until(lambda: pod.output(container) == "up\n")
    os.kill(find_agent(pod), 9)
    assert pod.exec(container, "echo alive")[1] == "alive\n"  # what runs runs on
    late = pod.create("/bin/true", name="late")
    with pytest.raises(grpc.RpcError, match="agent-died"):
        pod.cri.start(late)
    pod.end()
    leaks.expect_none(before, enclaves.node, site)
