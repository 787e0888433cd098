"""One containerd for the session, on the session's registry, KBS and simulated platform, with ordinary and encrypted images."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1] / "suites")]

import cri as clients  # noqa: E402  (lies here)
import daemon  # noqa: E402
from kubelet import OURS, RUNC, Kubelet, remove_parents  # noqa: E402

import testbed as testbeds  # noqa: E402


@pytest.fixture(scope="session")
def node(testbed: testbeds.Testbed) -> Iterator[daemon.Node]:
    directory = Path(tempfile.mkdtemp(prefix="ecc-", dir="/tmp"))
    configuration = directory / "config.toml"
    # Registry and KBS listen on the node's loopback only, where a pod's network does not reach.
    configuration.write_text(testbed.configuration.read_text() + '[network]\nagent = "host"\n')
    with daemon.running(directory / "c", testbed.registry_host, configuration=configuration) as running:
        yield running
    remove_parents()
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="session")
def cri(node: daemon.Node) -> Iterator[clients.Cri]:
    client = clients.Cri(node.address)
    client.pull(node.pause)  # now, so that the first pod does not
    yield client
    client.close()


@pytest.fixture(scope="session")
def plain(testbed: testbeds.Testbed, sources: Path, tmp_path_factory: pytest.TempPathFactory, cri: clients.Cri) -> str:
    """The ordinary busybox image, in containerd.

    Below it lies a layer that the encrypted one has not: containerd takes equal stacks of layers for the same, whichever
    image was pulled first, and those of the encrypted one are not on this host.
    """
    reference = f"{testbed.registry_host}/plain:latest"
    directory = tmp_path_factory.mktemp("plain")
    (directory / "own").mkdir()
    (directory / "own/plain").touch()
    own = testbeds.make_image(directory / "layout", "plain", directory / "own")
    root = sources.parent / "root"
    subprocess.run(["umoci", "--log", "error", "insert", "--image", own, str(root), "/"], check=True)
    subprocess.run(["umoci", "config", "--image", own, "--config.cmd", "/bin/sh"], check=True)
    daemon.push_layout(own, reference)
    cri.pull(reference)
    return reference


@pytest.fixture(scope="session")
def encrypted(busybox: str, cri: clients.Cri) -> str:
    """The same image, encrypted and signed, known to containerd; its owner allows everything."""
    cri.pull(busybox)
    return busybox


@pytest.fixture(scope="session")
def strict_server(testbed: testbeds.Testbed, sources: Path, cri: clients.Cri) -> str:
    """An encrypted image that runs on and on, whose owner allows nothing."""
    words = ("/bin/sh", "-c", "echo up; while :; do sleep 0.1; done")
    configured = [text for word in words for text in ("--config.cmd", word)]
    source = testbeds.make_image(sources, "server", sources.parent / "root", *configured, "--config.user", "app:audio")
    reference = testbed.publish(source, "strict-server")
    cri.pull(reference)
    return reference


@pytest.fixture
def ordinary(node: daemon.Node, cri: clients.Cri, tmp_path: Path, plain: str) -> Iterator[Kubelet]:
    with closing(Kubelet(node, cri, tmp_path / "ordinary", RUNC, plain)) as kubelet:
        yield kubelet


@pytest.fixture
def enclaves(node: daemon.Node, cri: clients.Cri, tmp_path: Path, encrypted: str) -> Iterator[Kubelet]:
    with closing(Kubelet(node, cri, tmp_path / "enclaves", OURS, encrypted)) as kubelet:
        yield kubelet


@pytest.fixture(params=[pytest.param(RUNC, marks=pytest.mark.heavy), OURS])
def kubelet(request: pytest.FixtureRequest) -> Kubelet:
    """Every test of this fixture runs with ours, and in `make heavy` with ordinary pods too: they may not differ."""
    return request.getfixturevalue("ordinary" if request.param == RUNC else "enclaves")
