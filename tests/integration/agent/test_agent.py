"""The agent process, whole: attests, pulls, decides, hands over; refuses; keeps answering; ends."""

from __future__ import annotations

import json
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import testbed as testbeds
from enclave_cc.enclave.boot.handover import fetch_release
from enclave_cc.enclave.rootfs.sealed_reader import SealedReader
from enclave_cc.enclave.tee.simulated import SimulatedPlatform
from enclave_cc.errors import EnclaveCcError, PeerError
from enclave_cc.wire.handover.release import Release
from enclave_cc.wire.launch.overrides import Overrides
from enclave_cc.wire.pb import agent as messages
from enclave_cc.wire.sgx.identity import EnclaveIdentity

pytestmark = pytest.mark.root
Nodes = Callable[..., Any]


def code(action: Callable[..., object], *arguments: object, **named: object) -> str:
    with pytest.raises(EnclaveCcError) as caught:
        action(*arguments, **named)
    return caught.value.code


def hand_over(node: Any, container: str, platform: SimulatedPlatform, *, agent: EnclaveIdentity | None = None) -> Release:
    return fetch_release(
        container,
        agent_socket=str(node.socket),
        platform=platform,
        identity=agent or EnclaveIdentity(mr_enclave=node.agent.mr_enclave),
        deadline=time.monotonic() + 20,
    )


def test_from_start_to_release(node: Any, busybox: str) -> None:
    status = node.status()
    assert (status.tee, status.simulated, status.mr_enclave) == ("simulated", True, node.agent.mr_enclave.hex())
    pulled = node.pull("c1", busybox)
    assert pulled.layers == 2  # one, and the marker
    assert pulled.manifest_digest.startswith("sha256:")
    node.create("c1", busybox, Overrides(args=("id",), hostname="pod").encode())
    release = hand_over(node, "c1", node.enter_app())
    assert release.launch.args == ("id",)
    assert release.launch.image == busybox + ":latest"
    assert release.launch.manifest_digest == pulled.manifest_digest
    with SealedReader(node.directory / "cache", release.rootfs.metadata) as reader:  # the keys are the blobs'
        assert reader.read(1024, 4) == (0xE0F5E1E2).to_bytes(4, "little")  # EROFS magic
    assert code(hand_over, node, "c1", node.enter_app()) == "handover-replayed"
    assert node.status().attested
    assert node.status().containers == (messages.ContainerStatus("c1", busybox + ":latest", "released"),)


def test_no_plaintext_and_no_secret_is_left_where_the_host_looks(node: Any, busybox: str, canary: str) -> None:
    node.pull("c1", busybox)
    node.create("c1", busybox)
    release = hand_over(node, "c1", node.enter_app())
    assert node.site.find_plaintext(canary.encode(), node.directory) == []
    for blob in release.rootfs.blobs:
        assert node.site.find_plaintext(blob.key.reveal(), node.directory) == []
        assert node.site.find_plaintext(blob.key.reveal().hex().encode(), node.directory) == []


def test_the_second_pull_comes_from_the_cache_and_asks_the_kbs_again(node: Any, busybox: str, testbed: testbeds.Testbed) -> None:
    first = node.pull("c1", busybox)
    before = testbed.kbs_log.read_text().count("image-key")
    second = node.pull("c2", busybox)
    assert (first.cached_layers, second.cached_layers, second.bytes_downloaded) == (0, 2, 0)
    assert testbed.kbs_log.read_text().count("image-key") > before


def test_another_agent_of_the_node_shares_the_cache(node: Any, make_node: Nodes, busybox: str) -> None:
    node.pull("c1", busybox)
    other = make_node("m")
    other.write()
    (other.directory / "cache").rmdir()
    (other.directory / "cache").symlink_to(node.directory / "cache")
    other.start()
    assert other.pull("c1", busybox).cached_layers == 2


def test_the_owners_launch_policy(node: Any, strict: str) -> None:
    node.pull("c1", strict)
    assert code(node.create, "c1", strict, Overrides(args=("sh",)).encode()) == "launch-denied"
    assert code(node.create, "c1", strict, Overrides(env=("A=b",)).encode()) == "launch-denied"
    node.create("c1", strict)


def test_containers_of_one_pod_at_once_and_answers_meanwhile(node: Any, busybox: str, strict: str) -> None:
    errors: list[BaseException] = []

    def run(container: str, image: str) -> None:
        try:
            node.pull(container, image)
            node.create(container, image)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(f"c{n}", (busybox, strict)[n % 2])) for n in range(8)]
    for thread in threads:
        thread.start()
    slowest = 0.0
    while any(thread.is_alive() for thread in threads):
        started = time.monotonic()
        node.status()
        slowest = max(slowest, time.monotonic() - started)
    assert errors == []
    assert slowest < 2
    platform = node.enter_app()
    for number in range(8):
        assert hand_over(node, f"c{number}", platform).launch.container_id == f"c{number}"


def test_an_app_may_start_before_the_pull(node: Any, busybox: str) -> None:
    releases: list[Release] = []
    platform = node.enter_app()
    thread = threading.Thread(target=lambda: releases.append(hand_over(node, "c1", platform)))
    thread.start()
    node.pull("c1", busybox)
    node.create("c1", busybox)
    thread.join(20)
    assert len(releases) == 1


@pytest.mark.parametrize("kind", ["other build", "debug", "agent as app"])
def test_wrong_apps_get_nothing(node: Any, busybox: str, kind: str) -> None:
    node.pull("c1", busybox)
    node.create("c1", busybox)
    build = {"other build": type(node.app)("app", 2, node.app.key, 1 << 27), "debug": node.app, "agent as app": node.agent}[kind]
    wrong = node.enter_app(build, debug=kind == "debug")
    assert code(hand_over, node, "c1", wrong) == ("debug-enclave" if kind == "debug" else "identity-refused")
    assert "handover refused" in node.log()
    assert hand_over(node, "c1", node.enter_app()).launch.container_id == "c1"  # nothing was used up


def test_an_app_refuses_another_agent(node: Any, busybox: str) -> None:
    node.pull("c1", busybox)
    node.create("c1", busybox)
    assert code(hand_over, node, "c1", node.enter_app(), agent=EnclaveIdentity(mr_enclave=bytes(32))) == "identity-refused"


def test_init_data_that_is_not_bound(make_node: Nodes, busybox: str) -> None:
    node = make_node(bound=bytes(64))
    node.start()
    assert code(node.pull, "c1", busybox) == "measurement-changed"
    assert code(node.status) == "measurement-changed"


def test_the_refusing_platform(make_node: Nodes, busybox: str) -> None:
    node = make_node(tee="refuse")
    node.start()
    assert code(node.pull, "c1", busybox) == "tee-refused"


def test_a_debug_agent_is_refused_by_the_kbs(make_node: Nodes, busybox: str) -> None:
    node = make_node(debug=True)
    node.start()
    assert code(node.pull, "c1", busybox) == "debug-enclave"
    assert not node.status().attested


def test_an_agent_that_the_owner_does_not_know(make_node: Nodes, builds: Any, busybox: str) -> None:
    node = make_node(agent=type(builds[0])("agent", 1, builds[0].key, 1 << 27))
    node.start()
    assert code(node.pull, "c1", busybox) == "measurement-unknown"
    assert node.call("GetPullProgress", messages.GetPullProgressRequest("c1"), messages.GetPullProgressResponse).state == "failed"


def test_a_kbs_with_another_identity_than_pinned(make_node: Nodes, busybox: str, tmp_path: Path) -> None:
    words = (
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=other -addext subjectAltName=IP:127.0.0.1"
    )
    files = ["-keyout", str(tmp_path / "k"), "-out", str(tmp_path / "c")]
    done = subprocess.run([*words.split(), *files], check=False, capture_output=True)
    assert done.returncode == 0, done.stderr
    node = make_node()
    pinned = json.dumps(json.dumps((node.site.kbs_directory / "kbs.crt").read_text()))[1:-1]
    assert pinned in node.init_data
    node.init_data = node.init_data.replace(pinned, json.dumps(json.dumps((tmp_path / "c").read_text()))[1:-1])
    node.start()
    assert code(node.pull, "c1", busybox) == "kbs-identity"


def test_an_image_that_is_not_there(node: Any) -> None:
    assert code(node.pull, "c1", node.site.reference("nothing")) == "image-not-found"
    assert code(node.pull, "c2", "127.0.0.1:1/x") == "registry-unreachable"


def test_killed_at_any_time_the_next_one_takes_over(make_node: Nodes, busybox: str) -> None:
    node = make_node()
    for delay in (0.0, 0.05, 0.2, 0.4, 0.8):
        node.start()
        codes: list[str] = []
        thread = threading.Thread(target=lambda codes=codes: codes.append(pull_code(node, busybox)))
        thread.start()
        time.sleep(delay)
        node.stop()
        thread.join(20)
        assert codes[0] in ("", "agent-unreachable")
        assert node.socket.exists()  # killed, it could not clean up
    node.start()
    node.pull("c1", busybox)


def pull_code(node: Any, image: str) -> str:
    try:
        node.pull("c1", image)
    except EnclaveCcError as error:
        return error.code
    return ""


@pytest.mark.parametrize("how", ["SIGTERM", "SIGINT", "Shutdown"])
def test_it_ends_when_told(node: Any, busybox: str, how: str) -> None:
    node.pull("c1", busybox)
    started = time.monotonic()
    if how == "Shutdown":
        node.call("Shutdown", messages.ShutdownRequest(), messages.ShutdownResponse)
        assert node.process.wait(10) == 0
    else:
        assert node.stop(getattr(signal, how)) == 0
    assert time.monotonic() - started < 3
    assert not node.socket.exists()
    assert '"stopped"' in node.log()


def test_it_listens_before_it_is_ready_and_is_small(node: Any, busybox: str) -> None:
    """Bounds with room for a busy machine; the measured figures are in ADR 6."""
    node.pull("c1", busybox)
    usage = Path(f"/proc/{node.process.pid}/smaps_rollup").read_text()
    pss = next(int(line.split()[1]) for line in usage.splitlines() if line.startswith("Pss:"))
    assert pss < 60_000, usage
    maps = Path(f"/proc/{node.process.pid}/maps").read_text()
    assert "asyncio" not in maps
    limits = Path(f"/proc/{node.process.pid}/limits").read_text()
    core = next(line for line in limits.splitlines() if line.startswith("Max core file size"))
    assert core.split()[4:6] == ["0", "0"]


def test_errors_carry_their_code_through_the_agent(node: Any) -> None:
    with pytest.raises(PeerError) as caught:
        node.pull("c1", "Not A Reference")
    assert caught.value.code == "bad-reference"
