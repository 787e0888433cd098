"""The handovers of one container: several may begin, one ends in the release, once."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from enclave_cc.enclave.tee.platform import Platform
from enclave_cc.errors import PeerError
from enclave_cc.wire.handover.agent_side import AgentSide
from enclave_cc.wire.handover.messages import Hello, Proof, hash_container_id
from enclave_cc.wire.handover.release import Release
from enclave_cc.wire.sgx.identity import EnclaveIdentity

MAX_SESSIONS = 8
# Hellos remembered per container; a container starts once, so an honest app needs one or two.
MAX_HELLOS = 1024


def check_hello(container_id: str, message: bytes) -> Hello:
    """A hello for this container. Raises `PeerError` ("malformed", "handover-refused"). Proves nothing yet."""
    hello = Hello.parse(message)
    if hello.container != hash_container_id(container_id):
        raise PeerError("handover-refused", "the hello is for another container")
    return hello


class Handovers:
    """Guards one release. Safe for many threads."""

    def __init__(
        self,
        container_id: str,
        release: Release,
        platform: Platform,
        app: EnclaveIdentity,
        *,
        lifetime: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._container_id, self._platform, self._app = container_id, platform, app
        self._lifetime, self._clock = lifetime, clock
        self._lock = threading.Lock()
        self._release: Release | None = release
        self._sessions: dict[bytes, AgentSide] = {}
        self._used: set[bytes] = set()  # session ids that a proof came for
        self._hellos: set[bytes] = set()  # nonces that were answered

    def begin(self, message: bytes) -> bytes:
        """The offer for an app's hello. Raises `PeerError`, "handover-replayed" for a hello that was here before."""
        hello = check_hello(self._container_id, message)
        with self._lock:
            if self._release is None:
                raise PeerError("handover-replayed", "this container's keys were handed over already")
            if hello.nonce in self._hellos:
                raise PeerError("handover-replayed", "this hello was answered before")
            if len(self._hellos) >= MAX_HELLOS:
                raise PeerError("handover-refused", f"more than {MAX_HELLOS} handovers were begun for this container")
            self._hellos.add(hello.nonce)
            now = self._clock()
            side = AgentSide(
                container_id=self._container_id,
                report=self._platform.report,
                verify=self._platform.verify,
                app=self._app,
                now=now,
                lifetime=self._lifetime,
            )
            offer = side.receive_hello(message, now)
            self._forget_stale(now)
            self._sessions[side.session] = side
            return offer

    def finish(self, message: bytes) -> bytes:
        """The release for an app's proof, once. Raises `PeerError`, "handover-replayed" for what was used before."""
        proof = Proof.parse(message)
        with self._lock:
            side = self._sessions.pop(proof.session, None)
            if side is None and (self._release is None or proof.session in self._used):
                raise PeerError("handover-replayed", "this handover was used already")
            if side is None:
                raise PeerError("handover-refused", "there is no such handover, or it has expired")
            self._used.add(proof.session)
            if self._release is None:
                raise PeerError("handover-replayed", "this container's keys were handed over already")
            answer = side.receive_proof(message, self._clock(), self._release)
            self._release = None
            self._sessions.clear()
            return answer

    def _forget_stale(self, now: float) -> None:
        self._sessions = {session: side for session, side in self._sessions.items() if side.is_open(now)}
        while len(self._sessions) >= MAX_SESSIONS:
            del self._sessions[next(iter(self._sessions))]  # the oldest
