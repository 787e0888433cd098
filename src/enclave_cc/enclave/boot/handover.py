"""Fetches launch statement and keys from the pod's agent (docs/formats/handover.md, the app's side)."""

from __future__ import annotations

import time
from collections.abc import Callable

from enclave_cc.enclave.boot import log
from enclave_cc.enclave.tee.platform import Platform
from enclave_cc.errors import EnvironmentFault
from enclave_cc.transport import ttrpc
from enclave_cc.wire.handover.app_side import AppSide
from enclave_cc.wire.handover.release import Release
from enclave_cc.wire.pb import agent, codec
from enclave_cc.wire.sgx.identity import EnclaveIdentity

_FIRST_WAIT, _LONGEST_WAIT = 0.005, 0.2


def fetch_release(
    container_id: str,
    *,
    agent_socket: str,
    platform: Platform,
    identity: EnclaveIdentity,
    deadline: float,
    on_agent: Callable[[], None] = lambda: None,
) -> Release:
    """The agent's release for `container_id`; `on_agent` is called once the agent has answered.

    `deadline` is on the monotonic clock. Raises coded errors: what `AppSide` and the agent refuse, `agent-unreachable`
    and `deadline`.
    """
    with ttrpc.Client(agent_socket, deadline=None) as client:
        side, offer = _begin(client, container_id, platform, identity, deadline)
        on_agent()
        proof = side.receive_offer(offer)
        return side.receive_release(_call(client, "Finish", container_id, proof, deadline))


def _begin(
    client: ttrpc.Client, container_id: str, platform: Platform, identity: EnclaveIdentity, deadline: float
) -> tuple[AppSide, bytes]:
    """Both may start in any order: until the deadline an agent that is not there yet is waited for."""
    wait, waited = _FIRST_WAIT, False
    while True:
        # A hello is answered once. One that was lost on the way is not sent again; another handover begins.
        side = AppSide(
            container_id=container_id,
            target_info=platform.target_info(),
            report=platform.report,
            verify=platform.verify,
            agent=identity,
        )
        try:
            return side, _call(client, "Begin", container_id, side.hello(), deadline)
        except EnvironmentFault as error:
            if error.code != "agent-unreachable" or time.monotonic() + wait >= deadline:
                raise
            if not waited:
                log.write("info", "waiting for the agent")
            waited = True
        time.sleep(wait)
        wait = min(wait * 2, _LONGEST_WAIT)


def _call(client: ttrpc.Client, method: str, container_id: str, message: bytes, deadline: float) -> bytes:
    left = deadline - time.monotonic()
    if left <= 0:
        raise EnvironmentFault("deadline", "the agent did not hand over in time")
    request = codec.encode(agent.HandoverRequest(container_id, message))
    answer = client.call(agent.HANDOVER_SERVICE, method, request, left)
    return codec.decode(agent.HandoverResponse, answer).message
