"""The services over a real socket, before, during and after the start; and a start that fails."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from handover_pair import Pair

from enclave_cc.enclave.agent.pod import Pod
from enclave_cc.enclave.agent.service import AgentService
from enclave_cc.enclave.agent.startup import Startup
from enclave_cc.errors import PeerError
from enclave_cc.transport.ttrpc import Client
from enclave_cc.transport.ttrpc_server import Server
from enclave_cc.wire.launch.overrides import Overrides
from enclave_cc.wire.pb import agent, codec

IMAGE = "r.example/team/app:1"


class Caller:
    def __init__(self, path: str) -> None:
        self.client = Client(path, 10)

    def __call__(self, method: str, request: object, answer: Any, timeout: float | None = None) -> Any:
        service = agent.HANDOVER_SERVICE if method in ("Begin", "Finish") else agent.AGENT_SERVICE
        return codec.decode(answer, self.client.call(service, method, codec.encode(request), timeout))


@contextmanager
def running(
    path: Path, make: Callable[[], Pod], attest: Callable[[], None] = lambda: None
) -> Iterator[tuple[Caller, AgentService]]:
    def make_and_attest(startup: Startup) -> Pod:
        startup.attest_ahead(attest)
        return make()

    startup = Startup(make_and_attest)
    service = AgentService(startup)
    with Server(str(path / "s"), service.services(), log=lambda _: None):
        startup.start()
        caller = Caller(str(path / "s"))
        yield caller, service
        caller.client.close()


def test_a_container_from_pull_to_release(pod: Pod, pair: Pair, tmp_path: Path) -> None:
    with running(tmp_path, lambda: pod) as (call, service):
        pulled = call("PullImage", agent.PullImageRequest("c1", IMAGE), agent.PullImageResponse)
        assert (pulled.image, pulled.layers, pulled.cached_layers) == (IMAGE, 2, 1)
        progress = call("GetPullProgress", agent.GetPullProgressRequest("c1"), agent.GetPullProgressResponse)
        assert progress.state == "pulled"
        assert progress.layers[1] == agent.LayerProgress("sha256:2", 7, 7, "cached")
        wish = Overrides(files=("hosts",)).encode()
        call("CreateContainer", agent.CreateContainerRequest("c1", IMAGE, wish), agent.CreateContainerResponse)
        app = pair.app_side()
        offer = call("Begin", agent.HandoverRequest("c1", app.hello()), agent.HandoverResponse).message
        answer = call("Finish", agent.HandoverRequest("c1", app.receive_offer(offer)), agent.HandoverResponse).message
        assert app.receive_release(answer).launch.files == ("hosts",)
        status = call("GetStatus", agent.GetStatusRequest(), agent.GetStatusResponse)
        assert status.containers == (agent.ContainerStatus("c1", IMAGE, "released"),)
        assert (status.tee, status.simulated, status.attested) == ("simulated", True, True)
        assert status.mr_enclave == pair.agent.body.mr_enclave.hex()
        assert status.kbs_url == "https://kbs.example"
        call("RemoveContainer", agent.RemoveContainerRequest("c1"), agent.RemoveContainerResponse)
        assert call("GetStatus", agent.GetStatusRequest(), agent.GetStatusResponse).containers == ()
        call("Shutdown", agent.ShutdownRequest(), agent.ShutdownResponse)
        assert service.stopping.is_set()


def test_calls_wait_for_the_start_within_their_deadline(pod: Pod, tmp_path: Path) -> None:
    gate = threading.Event()

    def make() -> Pod:
        assert gate.wait(10)
        return pod

    with running(tmp_path, make) as (call, _):
        with pytest.raises(PeerError) as caught:
            call("GetStatus", agent.GetStatusRequest(), agent.GetStatusResponse, 0.1)
        assert caught.value.code == "deadline"
        # What there is nothing of yet is removed at once.
        call("RemoveContainer", agent.RemoveContainerRequest("c1"), agent.RemoveContainerResponse)
        threading.Timer(0.1, gate.set).start()
        assert call("GetStatus", agent.GetStatusRequest(), agent.GetStatusResponse).version


def test_a_failed_start_is_the_answer_to_every_call(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def make() -> Pod:
        raise PeerError("measurement-changed", "the init-data is another")

    with running(tmp_path, make) as (call, _):
        for _ in range(2):
            with pytest.raises(PeerError) as caught:
                call("PullImage", agent.PullImageRequest("c1", IMAGE), agent.PullImageResponse)
            assert caught.value.code == "measurement-changed"
    assert "measurement-changed" in capfd.readouterr().err


def test_a_bug_at_the_start_shows_no_text(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def make() -> Pod:
        raise KeyError("hunter2")

    with running(tmp_path, make) as (call, _):
        with pytest.raises(PeerError) as caught:
            call("GetStatus", agent.GetStatusRequest(), agent.GetStatusResponse)
    assert caught.value.code == "internal"
    assert "KeyError" in caught.value.what
    assert "hunter2" not in caught.value.what + capfd.readouterr().err


def test_attestation_that_fails_ahead_is_not_the_end(pod: Pod, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def attest() -> None:
        raise PeerError("quote-refused", "no, id 7")

    with running(tmp_path, lambda: pod, attest) as (call, _):
        assert not call("GetStatus", agent.GetStatusRequest(), agent.GetStatusResponse).attested
        until = time.monotonic() + 5
        log = ""
        while "id 7" not in log and time.monotonic() < until:
            log += capfd.readouterr().err
            time.sleep(0.01)
        assert "id 7" in log


def test_requests_that_are_no_protobuf(pod: Pod, tmp_path: Path) -> None:
    with running(tmp_path, lambda: pod) as (call, _):
        for method in ("GetStatus", "PullImage", "GetPullProgress", "CreateContainer", "RemoveContainer", "Shutdown"):
            with pytest.raises(PeerError) as caught:
                call.client.call(agent.AGENT_SERVICE, method, b"\xff")
            assert caught.value.code == "malformed"
        for method in ("Begin", "Finish"):
            with pytest.raises(PeerError):
                call.client.call(agent.HANDOVER_SERVICE, method, b"\xff")
