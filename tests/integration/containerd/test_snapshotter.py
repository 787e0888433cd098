"""The conformance suite against our snapshotter, alone and behind containerd, and against containerd's own overlayfs."""

from __future__ import annotations

import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import alone
import daemon
import grpc
import pytest
from snapshotter import Snapshots, SnapshotterSuite

from enclave_cc.wire.pb import snapshots as pb

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def ours() -> Iterator[alone.Snapshotter]:
    directory = Path(tempfile.mkdtemp(prefix="ecc-", dir="/tmp"))
    running = alone.Snapshotter(directory)
    yield running
    running.end(signal.SIGTERM)
    shutil.rmtree(directory, ignore_errors=True)


class TestOurs(SnapshotterSuite):
    @pytest.fixture
    def snapshots(self, ours: alone.Snapshotter) -> Iterator[Snapshots]:
        client = Snapshots(ours.socket)
        yield client
        client.close()

    def test_cleanup_removes_what_is_nobodys(self, snapshots: Snapshots, ours: alone.Snapshotter, key: str) -> None:
        snapshots.prepare(key)
        known = {path.name for path in (ours.root / "snapshots").iterdir()}
        for name in ("new-left", "old-left", "999999"):
            (ours.root / "snapshots" / name / "fs/deep").mkdir(parents=True)
        snapshots.cleanup()
        assert {path.name for path in (ours.root / "snapshots").iterdir()} == known

    def test_codes_of_filters(self, snapshots: Snapshots) -> None:
        with pytest.raises(grpc.RpcError) as error:
            snapshots.walk("kind=active")
        assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT

    def test_malformed_and_unknown_calls(self, snapshots: Snapshots) -> None:
        for method, data in (("Stat", b"\xff\xff"), ("Prepare", b"\x0a\x05ab"), ("Stop", b"")):
            invoke = snapshots.channel.unary_unary(f"/{pb.SERVICE}/{method}")
            with pytest.raises(grpc.RpcError) as error:
                invoke(data, timeout=10)
            expected = grpc.StatusCode.UNIMPLEMENTED if method == "Stop" else grpc.StatusCode.INVALID_ARGUMENT
            assert error.value.code() is expected


class TestOursBehindContainerd(SnapshotterSuite):
    @pytest.fixture
    def snapshots(self, node: daemon.Node) -> Iterator[Snapshots]:
        client = Snapshots(node.address, name=daemon.SNAPSHOTTER)
        yield client
        client.close()


class TestContainerdsOverlay(SnapshotterSuite):
    """The suite asks for no more than containerd's own does."""

    @pytest.fixture
    def snapshots(self, node: daemon.Node) -> Iterator[Snapshots]:
        client = Snapshots(node.address, name="overlayfs")
        yield client
        client.close()


def test_the_same_mounts_as_containerds_overlay(node: daemon.Node) -> None:
    """Type and options of every kind of mount, but for the directories' names. (2.x changed the options' order.)"""
    shapes = []
    for name, root in ((daemon.SNAPSHOTTER, node.snapshots), ("overlayfs", node.root / "io.containerd.snapshotter.v1.overlayfs")):
        client = Snapshots(node.address, name=name)
        found = [client.prepare("same-a"), client.view("same-v")]
        client.commit("same-1", "same-a")
        found += [client.prepare("same-b", "same-1"), client.view("same-v1", "same-1")]
        client.commit("same-2", "same-b")
        found += [client.prepare("same-c", "same-2"), client.view("same-v2", "same-2")]
        numbers: dict[str, str] = {}

        def shape(text: str, root: Path = root, numbers: dict[str, str] = numbers) -> str:
            parts = text.split(f"{root}/snapshots/")
            named = [part.partition("/") for part in parts[1:]]
            return parts[0] + "".join(numbers.setdefault(n, f"<{len(numbers)}>") + slash + rest for n, slash, rest in named)

        made = [mount for mounts in found for mount in mounts]
        shapes.append([(m.type, shape(m.source), m.target, sorted(map(shape, m.options))) for m in made])
        for key in ("same-v", "same-v1", "same-v2", "same-c", "same-2", "same-1"):
            client.remove(key)
        client.close()
    assert shapes[0] == shapes[1]
