"""A registry that asks for credentials: the kubelet reads the manifest by its own, the agent the layers by the owner's."""

from __future__ import annotations

import base64
import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import cri as clients
import daemon
import grpc
import pytest
from cri_messages import AuthConfig
from kubelet import OURS, Kubelet
from test_fork_server import cpu_processes, find, shim_of
from tests.integration.registry import RegistryServer, serve

import testbed as testbeds

pytestmark = [pytest.mark.root, pytest.mark.slow]

RESOURCE = "default/credential/default"
KUBELET = AuthConfig("owner", "correct horse")
AGENT = AuthConfig("agent", "for the agent alone")
# of AGENT; docker-registry takes bcrypt only
HTPASSWD = "agent:$2y$05$1WgpRcj.3ghU31eDU.IhduFXYZbI81AtMm3UfGBv11FtvBhTZm4mC\n"


def encode(secret: AuthConfig, host: str, path: Path) -> Path:
    text = base64.b64encode(f"{secret.username}:{secret.password}".encode()).decode()
    path.write_text(json.dumps({"auths": {host: {"auth": text}}}))
    return path


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[RegistryServer]:
    with serve(tmp_path / "registry", auth="basic", users=HTPASSWD) as server:
        yield server


@pytest.fixture
def image(testbed: testbeds.Testbed, registry: RegistryServer, sources: Path, tmp_path: Path) -> Iterator[str]:
    """Published there; the owner's KBS has what the agent needs to pull it. `http://`: by the owner's word without TLS."""
    source = testbeds.make_image(sources, "guarded", sources.parent / "root", "--config.cmd", "/bin/sh")
    reference = f"{registry.host}/guarded:latest"
    secret = encode(KUBELET, registry.host, tmp_path / "publisher.json")
    testbed.cli("image", "publish", source, reference, "--insecure", "--allow", "all", "--auth-file", str(secret))
    testbed.cli("resource", "set", RESOURCE, str(encode(AGENT, f"http://{registry.host}", tmp_path / "agents.json")))
    yield reference
    testbed.cli("resource", "rm", RESOURCE)


@pytest.fixture
def guarded_node(testbed: testbeds.Testbed, registry: RegistryServer) -> Iterator[daemon.Node]:
    directory = Path(tempfile.mkdtemp(prefix="ecc-", dir="/tmp"))
    configuration = directory / "config.toml"
    text = testbed.configuration.read_text().replace("insecure = [", f'insecure = ["{registry.host}", ')
    configuration.write_text(text + '[network]\nagent = "host"\n')
    with daemon.running(directory / "c", testbed.registry_host, configuration=configuration) as running:
        yield running
    shutil.rmtree(directory, ignore_errors=True)


def remembers(pid: int, words: bytes) -> bool:
    """Whether a process has these bytes in memory that it can write to."""
    with suppress(FileNotFoundError), Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            place, mode, *_ = line.split()
            if mode.startswith("rw"):
                start, end = (int(number, 16) for number in place.split("-"))
                with suppress(OSError, ValueError):  # not backed by anything
                    memory.seek(start)
                    if words in memory.read(end - start):
                        return True
    return False


def test_the_agents_credential_stays_in_the_agent(
    guarded_node: daemon.Node, testbed: testbeds.Testbed, registry: RegistryServer, image: str, tmp_path: Path
) -> None:
    client = clients.Cri(guarded_node.address)
    kubelet = Kubelet(guarded_node, client, tmp_path / "logs", OURS, image)
    try:
        client.pull(image, secret=KUBELET)
        (registry.directory / "htpasswd").write_text(HTPASSWD)  # from now on, the kubelet's is worth nothing
        with pytest.raises(grpc.RpcError):
            client.pull(f"{registry.host}/other", secret=KUBELET)
        pod = kubelet.run_pod()
        assert pod.run("echo hello") == (0, "hello\n")

        secret = AGENT.password.encode()
        forms = (secret, base64.b64encode(f"{AGENT.username}:{AGENT.password}".encode()))
        assert guarded_node.containerd is not None and guarded_node.snapshotter is not None
        servers = find(" fork-server ")  # of all nodes on this machine: those of one installation share one
        host = [guarded_node.containerd.pid, guarded_node.snapshotter.pid, shim_of(pod), *servers]
        assert remembers(guarded_node.containerd.pid, b"containerd")  # it does find things
        for form in forms:
            assert [pid for pid in (*host, *cpu_processes(testbed)) if remembers(pid, form)] == []
            assert testbed.find_plaintext(form, guarded_node.directory, testbed.state, testbed.run_directory) == []
        pod.end()
    finally:
        kubelet.close()
        client.close()
