"""Enclave images on a real containerd with our snapshotter: the host downloads no layer of them, and nothing else changes."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import cri as clients
import daemon
import grpc
import pytest
from kubelet import OURS, RUNC, Kubelet, wait_until

import testbed as testbeds
from enclave_cc.host.sandbox import image_user
from enclave_cc.host.snapshotter.images import chain_ids
from enclave_cc.wire.oci.config import ImageConfig
from enclave_cc.wire.oci.digest import Digest

pytestmark = pytest.mark.root


def read_manifest(reference: str) -> dict[str, Any]:
    command = ["skopeo", "inspect", "--raw", "--tls-verify=false", f"docker://{reference}"]
    return json.loads(subprocess.run(command, capture_output=True, check=True).stdout)


def layers_of(reference: str) -> set[str]:
    return {layer["digest"] for layer in read_manifest(reference)["layers"]}


class Requests:
    """What containerd read from the registry since the test began."""

    def __init__(self, log: Path) -> None:
        self.log = log
        self.start = len(daemon.read_blob_requests(log))

    def digests(self) -> set[str]:
        found = daemon.read_blob_requests(self.log)[self.start :]
        return {digest for agent, digest in found if agent.startswith("containerd/")}


@pytest.fixture
def requests(testbed: testbeds.Testbed) -> Requests:
    return Requests(testbed.directory / "registry.log")


@pytest.fixture
def canary() -> str:
    """Of this module's images alone: the session's lies in an ordinary image too, and so on this host."""
    return "CANARY-" + os.urandom(16).hex()


@pytest.fixture
def images(tmp_path: Path, canary: str) -> Path:
    """An OCI layout: `one` has a layer of its own; `two` has two, `base` the lower of them, `sibling` that and another."""
    layout = tmp_path / "layout"
    base = testbeds.busybox_root(tmp_path / "base")
    (base / "etc/base").write_text(f"{tmp_path}\n{canary}\n")
    testbeds.make_image(layout, "base", base, "--config.cmd", "/bin/sh")
    upper = tmp_path / "upper"
    (upper / "opt").mkdir(parents=True)
    (upper / "opt/secret").write_text((canary + "\n") * 2000)
    for name in ("two", "sibling"):
        subprocess.run(["umoci", "tag", "--image", f"{layout}:base", name], check=True)
        (upper / "opt/name").write_text(name)
        subprocess.run(["umoci", "--log", "error", "insert", "--image", f"{layout}:{name}", str(upper), "/"], check=True)
    shutil.rmtree(upper)
    return layout


def list_snapshots(node: daemon.Node) -> list[str]:
    """As containerd names them: chain ids and container ids."""
    listed = node.ctr("snapshots", "--snapshotter", daemon.SNAPSHOTTER, "ls").stdout.splitlines()[1:]
    return [line.split()[0] for line in listed]


def chain_of(layout: Path, tag: str) -> list[str]:
    """The ids of an image's stacks of layers."""
    raw = subprocess.run(["skopeo", "inspect", "--config", "--raw", f"oci:{layout}:{tag}"], capture_output=True, check=True).stdout
    return list(chain_ids(ImageConfig.parse(raw).diff_ids))


def name_of(request: pytest.FixtureRequest) -> str:
    return re.sub(r"\W", "-", request.node.name).strip("-").lower()


def test_no_layer_of_an_enclave_image_is_downloaded(
    testbed: testbeds.Testbed,
    node: daemon.Node,
    cri: clients.Cri,
    images: Path,
    requests: Requests,
    canary: str,
    request: pytest.FixtureRequest,
) -> None:
    reference = testbed.publish(f"{images}:two", name_of(request), "--no-marker")
    layers, config = layers_of(reference), read_manifest(reference)["config"]["digest"]
    assert len(layers) == 2
    cri.pull(reference)
    assert config in requests.digests()  # the log does tell what containerd reads
    assert not layers & requests.digests()
    assert not layers & node.content_digests()
    assert testbed.find_plaintext(canary.encode(), node.root, node.snapshots) == []

    plain = f"{testbed.registry_host}/{name_of(request)}-plain:latest"
    daemon.push_layout(f"{images}:sibling", plain)  # the same pull of an ordinary image does download, and is seen
    with pytest.raises(grpc.RpcError, match="shares lower layers with an enclave image"):
        cri.pull(plain)
    cri.remove_image(reference)
    wait_until(lambda: not set(list_snapshots(node)) & set(chain_of(images, "two")))
    cri.pull(plain)
    assert layers_of(plain) <= requests.digests()
    cri.remove_image(plain)


def test_other_clients_download_no_layer_either(
    testbed: testbeds.Testbed, node: daemon.Node, plain: str, images: Path, requests: Requests, request: pytest.FixtureRequest
) -> None:
    """containerd's transfer service, by which `ctr images pull` and others have it pulled."""
    if node.version < (2, 0):
        pytest.skip("ctr of 1.6 and 1.7 downloads layers by itself")
    reference = testbed.publish(f"{images}:two", name_of(request))
    words = ("--plain-http", "--snapshotter", daemon.SNAPSHOTTER)
    node.ctr("images", "pull", *words, f"{reference}:latest", namespace="transfer")
    assert not layers_of(reference) & requests.digests()
    found = node.ctr("snapshots", "--snapshotter", daemon.SNAPSHOTTER, "ls", namespace="transfer").stdout
    assert len(found.splitlines()) - 1 == len(layers_of(reference))
    node.ctr("images", "pull", *words, plain, namespace="transfer")  # an ordinary one, as ever
    for image in (f"{reference}:latest", plain):
        node.ctr("images", "rm", "--sync", image, namespace="transfer")


def test_one_encrypted_layer_makes_the_whole_image_the_enclaves(
    testbed: testbeds.Testbed, cri: clients.Cri, images: Path, requests: Requests, request: pytest.FixtureRequest
) -> None:
    reference = testbed.publish(f"{images}:two", name_of(request), "--layers", "-1")
    types = [layer["mediaType"].endswith("+encrypted") for layer in read_manifest(reference)["layers"]]
    assert types == [True, False, True]  # the marker's, and those of two layers
    cri.pull(reference)
    assert not layers_of(reference) & requests.digests()
    cri.remove_image(reference)


def test_ordinary_layers_that_are_there_already_serve_an_enclave_image(
    testbed: testbeds.Testbed, cri: clients.Cri, node: daemon.Node, images: Path, requests: Requests, request: pytest.FixtureRequest
) -> None:
    plain = f"{testbed.registry_host}/{name_of(request)}-plain:latest"
    daemon.push_layout(f"{images}:base", plain)
    cri.pull(plain)
    reference = testbed.publish(f"{images}:two", name_of(request))
    cri.pull(reference)
    assert not layers_of(reference) & requests.digests()
    again = cri.pull(reference)  # nothing to do
    assert cri.image_status(reference).id == again
    cri.remove_image(reference)
    cri.remove_image(plain)


@pytest.mark.parametrize("order", ["encrypted first", "ordinary first"])
def test_an_image_and_its_encrypted_twin(
    testbed: testbeds.Testbed,
    node: daemon.Node,
    cri: clients.Cri,
    images: Path,
    requests: Requests,
    canary: str,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    order: str,
) -> None:
    """Of the same layers and configuration but for the marker: on one snapshotter each is what it is, in either order."""
    plain = f"{testbed.registry_host}/{name_of(request)}-plain:latest"
    daemon.push_layout(f"{images}:two", plain)
    reference = testbed.publish(f"{images}:two", name_of(request), "--allow", "all")
    handlers = {RUNC: plain, OURS: reference}
    kubelets = {handler: Kubelet(node, cri, tmp_path / handler, handler, image) for handler, image in handlers.items()}
    script = "head -n 1 /opt/secret; cat /opt/name; echo"
    try:
        for image in (reference, plain) if order == "encrypted first" else (plain, reference):
            cri.pull(image)
        for handler in (OURS, RUNC):
            pod = kubelets[handler].run_pod()
            assert pod.run(script) == (0, f"{canary}\ntwo\n")
            pod.end()
        assert not layers_of(reference) & requests.digests()
        assert layers_of(plain) <= requests.digests()
        identities = {str(found.id) for image in handlers.values() if (found := cri.image_status(image)) is not None}
        assert len(identities) == 2
    finally:
        for kubelet in kubelets.values():
            kubelet.close()
        for image in handlers.values():
            cri.remove_image(image)


def test_one_source_in_two_repositories(
    testbed: testbeds.Testbed, node: daemon.Node, cri: clients.Cri, images: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Each pod starts under its own image's name and policy: the open one's is not borrowed from the strict one, nor lent."""
    strict = testbed.publish(f"{images}:two", f"{name_of(request)}-a")
    free = testbed.publish(f"{images}:two", f"{name_of(request)}-b", "--allow", "all")
    kubelet = Kubelet(node, cri, tmp_path / "logs", OURS, free)
    try:
        identities = {image: cri.pull(image) for image in (strict, free)}
        assert len(set(identities.values())) == 2
        pod = kubelet.run_pod()
        # As the kubelet asks: by the id that the pull gave.
        assert pod.run("cat /opt/name; echo", name="free", image=identities[free]) == (0, "two\n")
        container = pod.create("/bin/sh", "-c", "cat /opt/name; echo", name="strict", image=identities[strict])
        with pytest.raises(grpc.RpcError, match="launch-denied"):
            cri.start(container)
    finally:
        kubelet.close()
        for image in (strict, free):
            cri.remove_image(image)


def test_images_that_cri_takes_for_one_are_refused(
    testbed: testbeds.Testbed, node: daemon.Node, cri: clients.Cri, images: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Without a marker: one configuration, two manifests. The pod says which it means, or does not start."""
    first = testbed.publish(f"{images}:two", f"{name_of(request)}-a", "--no-marker", "--allow", "all")
    second = testbed.publish(f"{images}:two", f"{name_of(request)}-b", "--no-marker", "--allow", "all")
    kubelet = Kubelet(node, cri, tmp_path / "logs", OURS, second)
    try:
        identities = [cri.pull(image) for image in (first, second)]
        assert identities[0] == identities[1]
        pod = kubelet.run_pod()
        container = pod.create("/bin/sh", "-c", "cat /opt/name; echo", image=identities[1])
        with pytest.raises(grpc.RpcError, match="bad-reference") as caught:
            cri.start(container)
        assert "marker" in str(caught.value.details())
        assert pod.output(container) == ""
        named = kubelet.run_pod(annotations={"enclave-cc.image.one": first, "enclave-cc.image.two": second})
        for name in ("one", "two"):
            assert named.run("cat /opt/name; echo", name=name, image=identities[0]) == (0, "two\n")
        assert read_log(node, "pulled") >= {first, second}
    finally:
        kubelet.close()
        for image in (first, second):
            cri.remove_image(image)


def read_log(node: daemon.Node, words: str) -> set[str]:
    """The images that shims' lines of these words name."""
    lines = [line for line in node.log.read_text().replace('"', "").replace("\\", "").splitlines() if f"msg={words}" in line]
    return {found[1] for line in lines if (found := re.search(r"image=(\S+)", line)) is not None}


@pytest.mark.parametrize("form", ["tag", "digest", "tag and digest"])
def test_forms_of_references(
    testbed: testbeds.Testbed, node: daemon.Node, cri: clients.Cri, busybox: str, tmp_path: Path, form: str
) -> None:
    """Pulled and run under each; the image id is the configuration's digest, and the digest that ran is the one asked for."""
    raw = subprocess.run(
        ["skopeo", "inspect", "--raw", "--tls-verify=false", f"docker://{busybox}"], capture_output=True, check=True
    ).stdout
    digest = Digest.of(raw)
    reference = {"tag": f"{busybox}:latest", "digest": f"{busybox}@{digest}", "tag and digest": f"{busybox}:latest@{digest}"}[form]
    identity = cri.pull(reference)
    assert identity == json.loads(raw)["config"]["digest"]
    found = cri.image_status(reference)
    assert found is not None and any(str(digest) in known for known in found.repo_digests)
    kubelet = Kubelet(node, cri, tmp_path / "logs", OURS, reference)
    try:
        size = node.log.stat().st_size
        pod = kubelet.run_pod()
        assert pod.run("echo ran") == (0, "ran\n")
        with node.log.open() as log:
            log.seek(size)
            assert str(digest) in next(line for line in log if "pulled" in line and "digest=" in line)
    finally:
        kubelet.close()


def test_a_named_user_becomes_the_mark(
    testbed: testbeds.Testbed, node: daemon.Node, cri: clients.Cri, images: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """CRI resolves USER app:audio before any runtime is asked; the image's own passwd is inside the enclave."""
    subprocess.run(["umoci", "config", "--image", f"{images}:base", "--config.user", "app:audio"], check=True)
    reference = testbed.publish(f"{images}:base", name_of(request))
    cri.pull(reference)
    kubelet = Kubelet(node, cri, tmp_path / "logs", RUNC, reference)
    try:
        pod = kubelet.run_pod()
        container = pod.create()
        user = pod.spec(container)["process"]["user"]
        assert (user["uid"], user["gid"]) == (image_user.UID, image_user.GID)
        upper = find_upper(node, container)
        assert (upper / "etc/passwd").read_text() == f"app:x:{image_user.UID}:{image_user.GID}::/:/bin/false\n"
        assert sorted(p.name for p in upper.iterdir()) == [".enclave-cc", "etc"]  # the former for our shim
    finally:
        kubelet.close()
        cri.remove_image(reference)


def test_the_enclave_finds_the_user_that_the_mark_stands_for(
    node: daemon.Node, cri: clients.Cri, strict: str, tmp_path: Path
) -> None:
    """Its owner allows nothing: the marked ids are not taken for a user that the host chose."""
    cri.pull(strict)
    kubelet = Kubelet(node, cri, tmp_path / "logs", OURS, strict)
    try:
        pod = kubelet.run_pod()
        container = pod.start()
        assert pod.wait(container).exit_code == 0
        assert pod.output(container) == "uid=1000(app) gid=29(audio) groups=29(audio)\n/home/app\nblue\n"
        assert pod.spec(container)["process"]["user"]["uid"] == image_user.UID
    finally:
        kubelet.close()


def find_upper(node: daemon.Node, key: str) -> Path:
    shown = node.ctr("snapshots", "--snapshotter", daemon.SNAPSHOTTER, "mounts", "/mnt", key).stdout
    found = re.search(r"upperdir=([^,\s]+)", shown)
    assert found, shown
    assert f"lowerdir={node.snapshots}/empty" in shown
    return Path(found[1])


def test_ordinary_pods_run_on_the_same_snapshotter(ordinary: Kubelet) -> None:
    pod = ordinary.run_pod()
    assert pod.run("echo hello; touch /written && ls /written") == (0, "hello\n/written\n")


def test_a_killed_snapshotter_comes_back_to_what_it_knew(node: daemon.Node, ordinary: Kubelet) -> None:
    pod = ordinary.run_pod()
    container = pod.shell("sleep 60")
    before = node.ctr("snapshots", "--snapshotter", daemon.SNAPSHOTTER, "ls").stdout
    node.kill_snapshotter()
    node.start_snapshotter()
    wait_until(lambda: node.ctr("snapshots", "--snapshotter", daemon.SNAPSHOTTER, "ls", check=False).stdout == before)
    assert pod.exec(container, "echo still here")[:2] == (0, "still here\n")
    assert pod.run("echo more")[1] == "more\n"
