"""Boot init as runc starts it: handover by local attestation, sealed image, FUSE, EROFS, overlay, workload."""

import os
import random
import re
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from boot_container import Container
from boot_node import CONTAINER, Node, find_mounts, pack_layer, seal_image

from enclave_cc.crypto.aead import TAG_SIZE
from enclave_cc.errors import PeerError
from enclave_cc.simulator.platform import Platform
from enclave_cc.wire.control import message
from enclave_cc.wire.control.status import State
from enclave_cc.wire.launch.limits import Rlimit
from enclave_cc.wire.sealed.block import BLOCK_SIZE
from enclave_cc.wire.sealed.rootfs import RootfsDescriptor
from enclave_cc.wire.sgx.identity import EnclaveIdentity

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Platform:
    return Platform.create(tmp_path_factory.mktemp("platform") / "p")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def rootfs(image: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> RootfsDescriptor:
    upper = tmp_path_factory.mktemp("upper")
    (upper / "data").write_bytes(bytes(range(256)) * 4096)  # 1 MiB
    image.chmod(0o755)
    return seal_image(cache, [pack_layer(image), pack_layer(upper)])


@pytest.fixture
def node(platform: Platform, cache: Path) -> Iterator[Node]:
    with tempfile.TemporaryDirectory(prefix="ecc-", dir="/tmp") as short:
        node = Node(Path(short), cache, platform)
        with node.serving():
            yield node
    assert find_mounts("/mnt/blobs") + find_mounts("/mnt/image") == []


def _error(container: Container) -> tuple[str, int | None]:
    status = container.status
    assert status.state is State.ERROR
    assert status.error is not None
    return status.error.code, status.exit_code


def test_an_image_runs(node: Node, rootfs: RootfsDescriptor) -> None:
    node.allow(rootfs, "sh", "-c", "id -u; cat /data | wc -c; touch /new; ls /new; env; exit 4")
    container = node.start()
    code, out, err = container.wait()
    assert (code, err) == (4, ""), container.log
    assert out.startswith("0\n1048576\n/new\n")
    assert "BOOT_SECRET" not in out
    assert list(container.status.stages) == sorted(["agent", "handover", "mount", "running", "settings", "spawn"])
    assert container.log == ""
    assert sorted(os.listdir(container.directory)) == ["boot.log", "status.json"]


@pytest.mark.parametrize("allowed", [True, False])
def test_standard_input_is_read_only_where_the_owner_allows_it(node: Node, rootfs: RootfsDescriptor, allowed: bool) -> None:
    """HOST-009: the host connects what it likes; a shell without arguments would do as it is told."""
    node.allow(rootfs, "sh", stdin=allowed)
    reader, writer = os.pipe()
    os.write(writer, b"echo owned\n")
    os.close(writer)
    try:
        assert node.start(stdin=reader).wait()[:2] == (0, "owned\n" if allowed else "")
    finally:
        os.close(reader)


def test_content_is_the_images(node: Node, rootfs: RootfsDescriptor) -> None:
    node.allow(rootfs, "cat", "/data")
    container = node.start()
    out, _ = container.process.communicate(timeout=20)
    assert out == bytes(range(256)) * 4096


def test_the_workload_reaches_nothing_of_boot_inits(node: Node, rootfs: RootfsDescriptor) -> None:
    script = (
        "cat /proc/mounts; echo; ls /run /mnt /var 2>&1; cat /proc/1/environ; echo; ls /proc | grep -c '^[0-9]'; "
        "for p in /proc/[0-9]*; do cat $p/cmdline; done | grep -c '[e]nclave_cc'; grep core /proc/self/limits"
    )
    node.allow(rootfs, "sh", "-c", script, rlimits=(Rlimit("RLIMIT_NOFILE", 100, 100),))
    container = node.start()
    _, out, _ = container.wait()
    mounts = out.split("\n\n")[0]
    assert re.search(r"^root / overlay rw", mounts)
    assert "fuse" not in mounts
    assert "enclave-cc" not in out
    assert "python" not in out
    assert "BOOT_SECRET" not in out
    assert re.search(r"^0$", out, re.MULTILINE)
    assert re.search(r"Max core file size +0 +0", out)


def test_read_only_root(node: Node, rootfs: RootfsDescriptor) -> None:
    node.allow(rootfs, "sh", "-c", "touch /x || echo refused; cat /data | wc -c", read_only_root=True)
    assert node.start().wait()[1] == "refused\n1048576\n"


def test_the_writable_layer_is_bounded(node: Node, rootfs: RootfsDescriptor) -> None:
    node.allow(rootfs, "dd", "if=/dev/zero", "of=/big", "bs=64k", "count=100", upper_size=1 << 20)
    code, _, err = node.start().wait()
    assert code == 1
    assert "No space left on device" in err


def test_exec_and_processes(node: Node, rootfs: RootfsDescriptor) -> None:
    node.allow(rootfs, "sleep", "1000", allow_exec=True)
    container = node.start()
    container.wait_state("running")
    assert container.execute("wc", "-c", "/data") == (0, "1048576 /data\n")
    assert container.execute("sh", "-c", "ls /proc/*/root/run/enclave-cc")[0] != 0
    assert container.ask(message.SignalRequest(signal.SIGKILL)) == message.Done()
    assert container.wait()[0] == 137


def test_it_waits_for_the_agent(platform: Platform, cache: Path, rootfs: RootfsDescriptor) -> None:
    with tempfile.TemporaryDirectory(prefix="ecc-", dir="/tmp") as short:
        node = Node(Path(short), cache, platform)
        with node.serving(agent=False):
            node.allow(rootfs, "id")
            container = node.start()
            container.wait_state("starting")
            time.sleep(0.2)
            with node.agent_server():
                assert container.wait()[0] == 0


@pytest.mark.parametrize("when", ["no agent", "hung agent"])
def test_a_missing_agent_ends_at_the_deadline(platform: Platform, cache: Path, rootfs: RootfsDescriptor, when: str) -> None:
    with tempfile.TemporaryDirectory(prefix="ecc-", dir="/tmp") as short:
        node = Node(Path(short), cache, platform)
        with node.serving(agent=when == "hung agent"):
            node.hang.set()
            node.allow(rootfs, "id")
            container = node.start(args=["--handover-deadline", "4"])  # longer than a start takes on a busy machine
            code, out, err = container.wait()
        assert (code, out, err) == ((9 if when == "no agent" else 7), "", "")
        assert _error(container)[0] == ("agent-unreachable" if when == "no agent" else "deadline")


def test_another_agent_is_refused(node: Node, rootfs: RootfsDescriptor) -> None:
    node.allow(rootfs, "id")
    node.agent_identity = EnclaveIdentity(mr_enclave=bytes(32))
    container = node.start()
    assert container.wait() == (53, "", "")
    assert _error(container) == ("identity-refused", 53)


def test_the_agents_refusal_is_passed_on(node: Node) -> None:
    node.releases[CONTAINER] = PeerError("launch-denied", "the command of the image is not to be replaced")
    container = node.start()
    assert container.wait() == (54, "", "")
    assert _error(container) == ("launch-denied", 54)


def test_without_a_platform_nothing_starts(node: Node, rootfs: RootfsDescriptor) -> None:
    node.allow(rootfs, "id")
    container = node.start(settings="")
    assert container.wait() == (10, "", "")
    assert _error(container) == ("tee-refused", 10)


def test_unknown_settings_are_refused(node: Node) -> None:
    container = node.start(settings='tee = "simulated"\nterminal = true\n')
    assert container.wait()[0] == 2
    assert _error(container) == ("bad-config", 2)


def test_a_changed_blob_is_refused(node: Node, image: Path, tmp_path: Path) -> None:
    changed = seal_image(tmp_path, [pack_layer(image)])
    node.cache = tmp_path
    (path,) = [p for p in (tmp_path / "blobs").iterdir() if p.name == changed.metadata.file_name]
    content = bytearray(path.read_bytes())
    content[1500] ^= 1  # in the block that holds the superblock
    path.write_bytes(content)
    node.allow(changed, "id")
    container = node.start()
    code, out, err = container.wait()
    assert (code, out, err) == (50, "", "")
    assert _error(container) == ("seal-broken", 50)
    assert f"block 0 of blob {changed.metadata.id.hex()}" in container.log


def test_a_changed_program_is_refused(node: Node, image: Path, tmp_path: Path) -> None:
    """The cause is named, not the I/O error that the kernel makes of it."""
    rootfs = seal_image(tmp_path, [pack_layer(image)])
    node.cache = tmp_path
    path = tmp_path / "blobs" / rootfs.layers[0].file_name
    content = bytearray(path.read_bytes())
    for block in range(0, len(content), (128 << 10) + 16):
        content[block + 5] ^= 1
    path.write_bytes(content)
    node.allow(rootfs, "sh")
    container = node.start()
    assert container.wait()[0] == 50
    assert _error(container) == ("seal-broken", 50)
    assert container.status.error is not None
    assert re.search(f"block [0-9]+ of blob {rootfs.layers[0].id.hex()}", container.status.error.what)


def test_a_missing_blob_is_refused(node: Node, image: Path, tmp_path: Path) -> None:
    gone = seal_image(tmp_path, [pack_layer(image)])
    node.cache = tmp_path
    (tmp_path / "blobs" / gone.layers[0].file_name).unlink()
    node.allow(gone, "id")
    container = node.start()
    assert container.wait()[0] == 50
    assert _error(container) == ("seal-broken", 50)


def test_a_block_changed_while_running_is_an_io_error(node: Node, image: Path, tmp_path: Path) -> None:
    (tmp_path / "upper").mkdir()
    (tmp_path / "upper/data").write_bytes(b"0123456789abcdef" * (1 << 16))
    rootfs = seal_image(tmp_path / "cache", [pack_layer(image), pack_layer(tmp_path / "upper")])
    node.cache = tmp_path / "cache"
    node.allow(rootfs, "sleep", "1000", allow_exec=True)
    container = node.start()
    container.wait_state("running")
    path = tmp_path / "cache/blobs" / rootfs.layers[1].file_name
    with path.open("r+b") as file:
        file.seek(700_000)
        byte = file.read(1)[0]
        file.seek(700_000)
        file.write(bytes([byte ^ 1]))
    broken = 700_000 // (BLOCK_SIZE + TAG_SIZE)
    code, out = container.execute("cat", "/data")
    assert code == 1
    assert "cat: read error: Input/output error" in out
    assert f"block {broken} of blob {rootfs.layers[1].id.hex()}" in container.log
    assert container.execute("id")[0] == 0


def test_a_signal_before_the_workload_ends_the_start(platform: Platform, cache: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="ecc-", dir="/tmp") as short:
        node = Node(Path(short), cache, platform)
        with node.serving(agent=False):
            container = node.start()
            container.wait_state("starting")
            end = time.monotonic() + 10
            while "settings" not in container.status.stages:
                assert time.monotonic() < end
                time.sleep(0.01)
            children = Path(f"/proc/{container.process.pid}/task/{container.process.pid}/children").read_text().split()
            os.kill(int(children[0]), signal.SIGTERM)
            assert container.wait()[0] == 143
        assert _error(container) == ("app-died", 143)


def test_killed_at_any_moment_it_leaves_nothing(node: Node, rootfs: RootfsDescriptor) -> None:
    delays = random.Random(5)
    for _ in range(12):
        node.allow(rootfs, "sleep", "1000")
        container = node.start()
        container.wait_state("starting", "running")
        time.sleep(delays.uniform(0, 0.25))
        children = Path(f"/proc/{container.process.pid}/task/{container.process.pid}/children").read_text().split()
        os.kill(int(children[0]), signal.SIGKILL)
        container.process.wait(timeout=10)  # as its parent waits for the whole namespace, nothing in it hangs
        assert container.status.state in (State.STARTING, State.RUNNING)
    node.allow(rootfs, "true")
    assert node.start().wait()[0] == 0


@pytest.mark.parametrize("arguments", [["--handover-deadline", "-1"], ["--handover-deadline", "x"], ["--nonsense"]])
def test_bad_arguments(node: Node, arguments: list[str]) -> None:
    assert node.start(args=arguments).wait()[0] == 2


def test_memory_is_not_readable_and_dumpable_is_off(node: Node, rootfs: RootfsDescriptor) -> None:
    node.allow(rootfs, "sleep", "1000")
    container = node.start()
    container.wait_state("running")
    boot = int(Path(f"/proc/{container.process.pid}/task/{container.process.pid}/children").read_text().split()[0])
    # /proc/PID of a process that is not dumpable belongs to root whoever it is; its core limit is zero.
    assert re.search(r"Max core file size +0 +0", Path(f"/proc/{boot}/limits").read_text())
    servers = Path(f"/proc/{boot}/task/{boot}/children").read_text().split()
    capabilities = [re.search(r"CapPrm:\s+(\w+)", Path(f"/proc/{pid}/status").read_text()) for pid in servers]
    assert "0000000000000000" in [found.group(1) for found in capabilities if found]  # the rootfs server has none
