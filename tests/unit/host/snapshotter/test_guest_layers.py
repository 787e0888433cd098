"""Which layers are left to the enclave: told from manifests in the content store, and kept as containerd wants them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from enclave_cc.errors import UsageError
from enclave_cc.host.sandbox import image_user, known_images
from enclave_cc.host.snapshotter import user_files
from enclave_cc.host.snapshotter.images import ContentStore, chain_ids
from enclave_cc.host.snapshotter.overlay import Overlay
from enclave_cc.host.snapshotter.snapshotter import Snapshotter
from enclave_cc.host.snapshotter.store import Snapshot, Store
from enclave_cc.wire.cri import labels as cri
from enclave_cc.wire.oci.digest import Digest
from enclave_cc.wire.pb.snapshots import Kind

DIFF_IDS = [Digest.of(bytes([n])) for n in range(3)]
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"


class Node:
    """A snapshotter without containerd: the test writes the content store."""

    def __init__(self, directory: Path) -> None:
        self.blobs = directory / "content/blobs/sha256"
        self.blobs.mkdir(parents=True)
        self.overlay = Overlay(directory)
        self.overlay.prepare()
        self.store = Store(directory / "db")
        self.snapshotter = Snapshotter(self.store, self.overlay, ContentStore(directory / "content"))

    def put(self, data: bytes) -> str:
        digest = hashlib.sha256(data).hexdigest()
        (self.blobs / digest).write_bytes(data)
        return f"sha256:{digest}"

    def put_image(self, *encrypted: bool, user: str = "", first: int = 0, key: str = "") -> tuple[str, tuple[str, ...]]:
        """(manifest digest, chain ids) of an image with one layer per flag."""
        diff_ids = DIFF_IDS[first : first + len(encrypted)]
        config = {
            "os": "linux",
            "architecture": "amd64",
            "config": {"User": user},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        }
        data = json.dumps(config).encode()
        digests = [str(Digest.of(b"%d%d" % (n, flag) + key.encode())) for n, flag in enumerate(encrypted)]
        layers = [
            {"mediaType": LAYER + ("+encrypted" if flag else ""), "digest": digest, "size": 5}
            for digest, flag in zip(digests, encrypted, strict=True)
        ]
        described = {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": self.put(data), "size": len(data)}
        manifest = {"schemaVersion": 2, "config": described, "layers": layers}
        return self.put(json.dumps(manifest).encode()), chain_ids(diff_ids)

    def pull(self, manifest: str, chain: tuple[str, ...]) -> list[str]:
        """As containerd does; how each layer was answered."""
        answers, parent = [], ""
        for number, target in enumerate(chain):
            labels = {cri.SNAPSHOT_REF: target, **({cri.MANIFEST_DIGEST: manifest} if manifest else {})}
            key = f"extract-{number} {target}"
            try:
                self.snapshotter.prepare(key, parent, labels)
            except UsageError as error:
                assert error.code == "already-exists"
                found = self.snapshotter.walk([f'labels."{cri.SNAPSHOT_REF}"=={target},parent=="{parent}"'])
                kept = next(s for s in found if s.kind is Kind.COMMITTED)
                answers.append("guest")
                parent = kept.name
            else:
                answers.append("download")
                self.snapshotter.commit(f"{number} {target}", key, "", labels)
                parent = f"{number} {target}"
        self.top = parent
        return answers


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    made = Node(tmp_path)
    yield made
    made.store.close()


def test_an_image_is_the_enclaves_as_a_whole(node: Node) -> None:
    assert node.pull(*node.put_image(False, True, False)) == ["guest"] * 3
    assert node.pull(*node.put_image(False, True, False)) == ["guest"] * 3  # again, as another namespace does
    assert len(list(node.snapshotter.walk([]))) == 3
    assert list(node.overlay.snapshots.iterdir()) == []


def test_ordinary_images_are_not(node: Node) -> None:
    assert node.pull(*node.put_image(False, False)) == ["download"] * 2
    assert node.pull("", chain_ids(DIFF_IDS[2:])) == ["download"]  # nothing known at all


def test_without_a_manifest_the_chain_tells(node: Node) -> None:
    _, chain = node.put_image(True, True)
    assert node.pull("", chain) == ["guest"] * 2


def test_a_chain_of_an_ordinary_image_too_is_ordinary_without_a_manifest(node: Node) -> None:
    manifest, chain = node.put_image(True, True)
    node.put_image(False, False)
    assert node.pull("", chain) == ["download"] * 2
    assert node.pull(manifest, chain) == ["guest"] * 2


def test_an_ordinary_image_on_layers_that_are_not_here_is_refused(node: Node) -> None:
    _, chain = node.put_image(True, True)
    node.pull("", chain[:1])
    manifest, _ = node.put_image(False, False)
    with pytest.raises(UsageError, match="shares lower layers") as error:
        node.snapshotter.prepare("k", node.top, {cri.SNAPSHOT_REF: chain[1], cri.MANIFEST_DIGEST: manifest})
    assert error.value.code == "wrong-state"


def test_a_container_gets_an_empty_root_with_the_images_user(node: Node) -> None:
    node.pull(*node.put_image(True, True, user="app:audio"))
    (mount,) = node.snapshotter.prepare("c1", node.top, {})
    upper = node.overlay.upper(node.store.get("c1").id)
    assert mount.type == "overlay"
    assert f"lowerdir={node.overlay.empty}" in mount.options
    assert f"upperdir={upper}" in mount.options
    assert (upper / "etc/passwd").read_text() == f"app:x:{image_user.UID}:{image_user.GID}::/:/bin/false\n"
    assert (upper / "etc/group").read_text() == f"audio:x:{image_user.GID}:\n"
    (view,) = node.snapshotter.view("v1", node.top, {})
    assert (view.type, view.options) == ("bind", ("ro", "rbind"))
    assert Path(view.source, "etc/passwd").exists()


def make_container(node: Node, key: str) -> Snapshot:
    node.snapshotter.prepare(key, node.top, {})
    return node.store.get(key)


def test_containers_of_either_of_two_equal_images_are_told_in_the_log(node: Node, capfd: pytest.CaptureFixture[str]) -> None:
    manifest, chain = node.put_image(True, user="app")
    node.pull(manifest, chain)
    node.snapshotter.prepare("c1", node.top, {})
    assert capfd.readouterr().err == ""
    assert set(known_images.read(node.overlay.upper(node.store.get("c1").id))) == {manifest}
    twin, _ = node.put_image(True, user="app")  # the same manifest again
    other, _ = node.put_image(True, user="app", key="other")
    known = known_images.read(node.overlay.upper(make_container(node, "c3").id))
    assert twin == manifest and set(known) == {manifest, other}
    assert known_images.find_namesakes(known, manifest) == [other]
    unlike, _ = node.put_image(True, user="root")
    known = known_images.read(node.overlay.upper(make_container(node, "c4").id))
    assert (set(known), known_images.find_namesakes(known, unlike)) == ({manifest, other, unlike}, [])
    node.put_image(False)
    node.snapshotter.prepare("c2", node.top, {})
    assert "c2 may be of an ordinary image" in capfd.readouterr().err


def test_a_damaged_manifest_is_none(node: Node) -> None:
    manifest, chain = node.put_image(True)
    path = node.blobs / manifest.removeprefix("sha256:")
    path.write_bytes(path.read_bytes() + b" ")
    assert node.pull(manifest, chain) == ["download"]


def test_a_manifest_whose_config_comes_later_is_looked_at_again(node: Node) -> None:
    manifest, chain = node.put_image(True, user="app")
    config = next(p for p in node.blobs.iterdir() if p.name != manifest.removeprefix("sha256:"))
    data = config.read_bytes()
    config.unlink()
    assert node.pull(manifest, chain) == ["guest"]
    config.write_bytes(data)
    node.snapshotter.prepare("c1", node.top, {})
    assert (node.overlay.upper(node.store.get("c1").id) / "etc/passwd").exists()


def test_user_files() -> None:
    users = {"app", "web:www", "1000", "1001:staff", "0:0", "", "bad:na:me", "-x", "5000000000"}
    passwd = [line.split(":") for line in user_files.make_passwd(users).splitlines()]
    assert all(len(line) == 7 for line in passwd)
    assert {(line[0], int(line[2])) for line in passwd} == {
        ("app", image_user.UID),
        ("web", image_user.UID),
        ("bad", image_user.UID),
        ("5000000000", image_user.UID),
        ("id-1000", 1000),
        ("id-1001", 1001),
        ("id-0", 0),
    }
    assert {int(line[3]) for line in passwd} == {image_user.GID}
    groups = {line.split(":")[0] for line in user_files.make_group(users).splitlines()}
    assert groups == {"www", "staff"}
