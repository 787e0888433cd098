"""The agent enclave as the host sees it: the calls of `enclavecc.agent.v1.Agent` over the pod's own socket."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from enclave_cc.errors import EnvironmentFault
from enclave_cc.transport import ttrpc
from enclave_cc.wire.pb import agent as messages
from enclave_cc.wire.pb import codec

T = TypeVar("T")
_FIRST_LOOK = 0.002  # seconds; an agent takes about 100 ms to listen


class AgentClient:
    """Calls raise the agent's coded errors, `PeerError("deadline")`, or `EnvironmentFault("agent-unreachable")`."""

    def __init__(self, socket: Path, *, deadline: float) -> None:
        self._socket = socket
        self._deadline = deadline
        self._client = ttrpc.Client(str(socket), deadline)

    def wait(self, pidfd: int, *, deadline: float, given_up: Callable[[], bool] = lambda: False) -> None:
        """Until the agent listens, or the caller has `given_up`. Raises `EnvironmentFault`: "agent-died" when its process ends
        before, "deadline" after.

        `pidfd` is the agent's init.
        """
        until = time.monotonic() + deadline
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        while not os.path.exists(self._socket) and not given_up():  # noqa: PTH110 - polled every 2 ms
            if poll.poll(_FIRST_LOOK * 1000):
                raise EnvironmentFault("agent-died", "the agent enclave ended before it was ready")
            if time.monotonic() > until:
                raise EnvironmentFault("deadline", f"the agent enclave was not ready within {deadline:g} s")

    def get_status(self) -> messages.GetStatusResponse:
        return self._call("GetStatus", messages.GetStatusRequest(), messages.GetStatusResponse)

    def pull_image(self, container: str, image: str, *, deadline: float) -> messages.PullImageResponse:
        request = messages.PullImageRequest(container_id=container, image=image)
        return self._call("PullImage", request, messages.PullImageResponse, deadline)

    def get_pull_progress(self, container: str) -> messages.GetPullProgressResponse:
        request = messages.GetPullProgressRequest(container_id=container)
        return self._call("GetPullProgress", request, messages.GetPullProgressResponse)

    def create_container(self, container: str, image: str, overrides: bytes) -> None:
        request = messages.CreateContainerRequest(container_id=container, image=image, overrides=overrides)
        self._call("CreateContainer", request, messages.CreateContainerResponse)

    def remove_container(self, container: str, *, deadline: float) -> None:
        request = messages.RemoveContainerRequest(container_id=container)
        self._call("RemoveContainer", request, messages.RemoveContainerResponse, deadline)

    def close(self) -> None:
        self._client.close()

    def _call(self, method: str, request: object, answer: type[T], deadline: float | None = None) -> T:
        encoded = codec.encode(request)
        return codec.decode(answer, self._client.call(messages.AGENT_SERVICE, method, encoded, deadline or self._deadline))
