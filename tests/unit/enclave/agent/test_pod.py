"""One pod's agent: order of calls, several containers at once, one release per container."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from handover_pair import Pair

from enclave_cc.enclave.agent import settings
from enclave_cc.enclave.agent.container_states import State
from enclave_cc.enclave.agent.containers import MAX_CONTAINERS
from enclave_cc.enclave.agent.pod import UNLIMITED, Pod
from enclave_cc.errors import EnvironmentFault, PeerError, UsageError
from enclave_cc.wire.handover.release import Release
from enclave_cc.wire.launch.overrides import Overrides
from enclave_cc.wire.launch.policy import LaunchPolicy

IMAGE = "r.example/team/app:1"


def code(action: Callable[..., object], *arguments: object) -> str:
    with pytest.raises((PeerError, UsageError, EnvironmentFault)) as caught:
        action(*arguments)
    return caught.value.code


def prepare(pod: Pod, container_id: str = "c1") -> None:
    pod.pull_image(container_id, IMAGE, None)
    pod.create_container(container_id, IMAGE, b"")


def hand_over(pod: Pod, pair: Pair, container_id: str = "c1") -> Release:
    app = pair.app_side(container_id=container_id)
    offer = pod.begin_handover(container_id, app.hello(), None)
    return app.receive_release(pod.finish_handover(container_id, app.receive_offer(offer)))


def test_from_pull_to_release(pod: Pod, pair: Pair, steered: Any) -> None:
    answer = pod.pull_image("c1", IMAGE, None)
    assert (answer.image, answer.layers, answer.cached_layers, answer.bytes_downloaded) == (IMAGE, 2, 1, 100)
    assert answer.manifest_digest == "sha256:" + "b" * 64
    assert steered.deadlines[0] == pytest.approx(UNLIMITED)
    pod.create_container("c1", IMAGE, Overrides(hostname="h").encode())
    release = hand_over(pod, pair)
    assert release.launch.args == ("/bin/app",)
    assert release.launch.hostname == "h"
    assert (release.launch.container_id, release.launch.image) == ("c1", IMAGE)
    assert release.launch.manifest_digest == "sha256:" + "b" * 64
    assert pod.containers.find("c1").state is State.RELEASED


def test_the_callers_deadline_is_the_pulls(pod: Pod, steered: Any) -> None:
    pod.pull_image("c1", IMAGE, time.monotonic() + 100)
    assert 95 < steered.deadlines[0] <= 100


def test_several_containers_at_once_and_answers_meanwhile(pod: Pod, steered: Any) -> None:
    steered.gate.clear()
    threads = [threading.Thread(target=pod.pull_image, args=(f"c{n}", IMAGE, None)) for n in range(5)]
    for thread in threads:
        thread.start()
    assert steered.entered.wait(5)
    started = time.monotonic()
    while len(pod.containers.list()) < 5 and time.monotonic() < started + 5:
        time.sleep(0.005)
    while not pod.list_progress("c0")[1] and time.monotonic() < started + 10:
        time.sleep(0.005)
    state, layers = pod.list_progress("c0")
    assert state is State.PULLING
    assert [(layer.digest, layer.done, layer.total, layer.stage) for layer in layers] == [("sha256:1", 10, 100, "pulling")]
    assert code(pod.create_container, "c0", IMAGE, b"") == "wrong-state"
    assert code(pod.pull_image, "c0", IMAGE, None) == "wrong-state"
    steered.gate.set()
    for thread in threads:
        thread.join()
    assert all(container.state is State.PULLED for container in pod.containers.list())


def test_the_release_is_made_once(pod: Pod, pair: Pair) -> None:
    prepare(pod)
    hand_over(pod, pair)
    assert code(hand_over, pod, pair) == "handover-replayed"
    assert code(pod.create_container, "c1", IMAGE, b"") == "wrong-state"


def test_two_apps_race_for_one_release(pod: Pod, pair: Pair) -> None:
    prepare(pod)
    first, second = pair.app_side(), pair.app_side()
    proofs = [app.receive_offer(pod.begin_handover("c1", app.hello(), None)) for app in (first, second)]
    first.receive_release(pod.finish_handover("c1", proofs[0]))
    assert code(pod.finish_handover, "c1", proofs[1]) == "handover-replayed"


def test_replayed_messages(pod: Pod, pair: Pair) -> None:
    prepare(pod)
    app = pair.app_side()
    hello = app.hello()
    proof = app.receive_offer(pod.begin_handover("c1", hello, None))
    assert code(pod.begin_handover, "c1", hello, None) == "handover-replayed"
    broken = proof[:-1] + bytes([proof[-1] ^ 1])
    assert code(pod.finish_handover, "c1", broken) == "handover-refused"
    assert code(pod.finish_handover, "c1", proof) == "handover-replayed"  # its session was used up by the broken one
    assert hand_over(pod, pair).launch.container_id == "c1"  # a new run is not harmed


def test_sessions_are_bounded_and_the_oldest_gives_way(pod: Pod, pair: Pair) -> None:
    prepare(pod)
    apps = [pair.app_side() for _ in range(9)]
    proofs = [app.receive_offer(pod.begin_handover("c1", app.hello(), None)) for app in apps]
    assert code(pod.finish_handover, "c1", proofs[0]) == "handover-refused"
    apps[8].receive_release(pod.finish_handover("c1", proofs[8]))


def test_hellos_are_bounded(pod: Pod, pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    from enclave_cc.enclave.agent import handovers

    monkeypatch.setattr(handovers, "MAX_HELLOS", 2)
    prepare(pod)
    for _ in range(2):
        pod.begin_handover("c1", pair.app_side().hello(), None)
    assert code(pod.begin_handover, "c1", pair.app_side().hello(), None) == "handover-refused"


def test_containers_do_not_mix(pod: Pod, pair: Pair) -> None:
    prepare(pod, "c1")
    prepare(pod, "c2")
    app = pair.app_side(container_id="c1")
    assert code(pod.begin_handover, "c2", app.hello(), None) == "handover-refused"
    app = pair.app_side(container_id="c1")
    proof = app.receive_offer(pod.begin_handover("c1", app.hello(), None))
    assert code(pod.finish_handover, "c2", proof) == "handover-refused"
    assert code(pod.begin_handover, "c3", pair.app_side(container_id="c3").hello(), None) == "not-found"
    assert code(pod.begin_handover, "c3", b"\0" * 64, None) == "not-found"
    assert code(pod.begin_handover, "c1", b"\0" * 64, None) == "malformed"


def test_an_app_may_ask_before_its_image_is_there(pod: Pod, pair: Pair, steered: Any) -> None:
    releases: list[Release] = []

    def start() -> None:
        app = pair.app_side()
        offer = pod.begin_handover("c1", app.hello(), time.monotonic() + 10)
        releases.append(app.receive_release(pod.finish_handover("c1", app.receive_offer(offer))))

    thread = threading.Thread(target=start)
    thread.start()
    time.sleep(0.05)
    prepare(pod)
    thread.join(10)
    assert len(releases) == 1


def test_an_app_that_waits_is_told_when_it_waits_in_vain(pod: Pod, pair: Pair, steered: Any) -> None:
    codes: list[str] = []

    def wait(container_id: str, seconds: float) -> threading.Thread:
        hello = pair.app_side(container_id=container_id).hello()
        thread = threading.Thread(
            target=lambda: codes.append(code(pod.begin_handover, container_id, hello, time.monotonic() + seconds))
        )
        thread.start()
        return thread

    wait("nobody", 0.05).join(5)
    assert codes.pop() == "deadline"
    steered.error = PeerError("layer-broken", "bad")
    waiting = wait("c1", 10)
    assert code(pod.pull_image, "c1", IMAGE, None) == "layer-broken"
    waiting.join(5)
    assert codes.pop() == "handover-refused"
    steered.error = None
    pod.pull_image("c2", IMAGE, None)
    waiting = wait("c2", 10)
    time.sleep(0.05)
    pod.remove_container("c2")
    waiting.join(5)
    assert codes.pop() == "not-found"


def test_a_failed_pull_may_be_tried_again(pod: Pod, steered: Any) -> None:
    steered.error = PeerError("signature-wrong", "no")
    assert code(pod.pull_image, "c1", IMAGE, None) == "signature-wrong"
    assert pod.containers.find("c1").state is State.FAILED
    assert code(pod.create_container, "c1", IMAGE, b"") == "wrong-state"
    steered.error = None
    prepare(pod)


def test_another_image_than_was_pulled(pod: Pod) -> None:
    pod.pull_image("c1", IMAGE, None)
    assert code(pod.create_container, "c1", "r.example/team/app:2", b"") == "wrong-state"
    assert code(pod.create_container, "c9", IMAGE, b"") == "not-found"


def test_hostile_arguments(pod: Pod) -> None:
    for bad in ("", "../x", ".x", "a/b", "x" * 129, "a b", "ä"):
        assert code(pod.pull_image, bad, IMAGE, None) == "malformed"
    assert code(pod.pull_image, "c1", "UPPER/..", None) == "bad-reference"
    assert code(pod.list_progress, "c1") == "not-found"
    pod.pull_image("c1", IMAGE, None)
    assert code(pod.create_container, "c1", IMAGE, b"[]") == "malformed"
    assert pod.containers.find("c1").state is State.PULLED


def test_the_number_of_containers_is_bounded(pod: Pod) -> None:
    for number in range(MAX_CONTAINERS):
        pod.containers.begin_pull(f"c{number}", IMAGE)
    assert code(pod.pull_image, "more", IMAGE, None) == "too-large"


def test_the_owners_policy_decides(pod: Pod, resources: Any) -> None:
    wish = Overrides(args=("sh",)).encode()
    pod.pull_image("c1", IMAGE, None)
    assert code(pod.create_container, "c1", IMAGE, wish) == "launch-denied"
    resources.resources[settings.LAUNCH_POLICY_URI] = LaunchPolicy().with_image("r.example/team/app", ["command"]).encode()
    pod.create_container("c1", IMAGE, wish)
    pod.pull_image("c2", IMAGE, None)
    resources.resources[settings.LAUNCH_POLICY_URI] = b"broken"
    assert code(pod.create_container, "c2", IMAGE, wish) == "policy-invalid"


def test_removal(pod: Pod, pair: Pair, steered: Any, tmp_path: Path) -> None:
    prepare(pod)
    app = pair.app_side()
    proof = app.receive_offer(pod.begin_handover("c1", app.hello(), None))
    pod.remove_container("c1")
    pod.remove_container("c1")
    assert code(pod.finish_handover, "c1", proof) == "not-found"
    assert pod.containers.list() == []


def test_removal_ends_a_pull(pod: Pod, steered: Any) -> None:
    steered.gate.clear()
    codes: list[str] = []
    thread = threading.Thread(target=lambda: codes.append(code(pod.pull_image, "c1", IMAGE, None)))
    thread.start()
    assert steered.entered.wait(5)
    pod.remove_container("c1")
    steered.gate.set()
    thread.join(5)
    assert codes == ["wrong-state"]
    prepare(pod)  # the id is free again


def test_the_log_names_errors_of_ours_and_hides_others(pod: Pod, steered: Any, capfd: pytest.CaptureFixture[str]) -> None:
    steered.error = RuntimeError("hunter2")
    with pytest.raises(RuntimeError):
        pod.pull_image("c1", IMAGE, None)
    steered.error = PeerError("kbs-denied", "id 123")
    assert code(pod.pull_image, "c1", IMAGE, None) == "kbs-denied"
    log = capfd.readouterr().err
    assert "hunter2" not in log
    assert "RuntimeError" in log
    assert "id 123" in log
