"""The agent's side of a handover: releases once, to the app enclave that its policy names."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hmac import compare_digest

from enclave_cc.crypto.exchange import KeyShare
from enclave_cc.errors import EnclaveCcError, PeerError, UsageError
from enclave_cc.wire.handover import states, transcript
from enclave_cc.wire.handover.messages import (
    MAX_RELEASE_SIZE,
    SESSION_SIZE,
    Hello,
    Offer,
    Proof,
    SealedRelease,
    Type,
    hash_container_id,
)
from enclave_cc.wire.handover.release import Release
from enclave_cc.wire.handover.states import State
from enclave_cc.wire.sgx.identity import EnclaveIdentity
from enclave_cc.wire.sgx.report import Report, ReportBody, TargetInfo


class AgentSide:
    """One handover, sans-io: `receive_hello(...)` → `receive_proof(...)`.

    `report`, `verify`: as for `AppSide`; `app` is the measured policy on the app's identity. `now` and `lifetime` are
    seconds of one clock that never goes back.
    """

    def __init__(
        self,
        *,
        container_id: str,
        report: Callable[[TargetInfo, bytes], Report],
        verify: Callable[[Report], ReportBody],
        app: EnclaveIdentity,
        now: float,
        lifetime: float,
    ) -> None:
        self.container_id = container_id
        self.session = os.urandom(SESSION_SIZE)
        self.state = State.NEW
        self._report, self._verify, self._app = report, verify, app
        self._expires_at = now + lifetime
        self._share: KeyShare | None = KeyShare()
        self._hello = self._offer = b""
        self._target: TargetInfo | None = None

    def is_open(self, now: float) -> bool:
        """Whether a proof may still come."""
        return self.state in (State.NEW, State.GREETED, State.OFFERED) and now < self._expires_at

    def receive_hello(self, data: bytes, now: float) -> bytes:
        """The offer that answers the app's hello. Raises `PeerError`; the handover is then over.

        1. it is the hello's turn, in time, and the message is one
        2. it is for this container

        Nothing of the app is proven yet: the offer holds no secret.
        """
        with self._refuse_on_error():
            # 1
            self.state = states.move(self.state, Type.HELLO)
            self._check_time(now)
            hello = Hello.parse(data)
            # 2
            if hello.container != hash_container_id(self.container_id):
                raise PeerError("handover-refused", "the hello is for another container")
            if self._share is None:
                raise UsageError("wrong-state", "this handover has no share any more")
            opening = Offer.encode_opening(self.session, self._share.public)
            report = self._report(hello.target, transcript.offer_report_data(data, opening))
            self._hello, self._offer, self._target = data, opening + report.encode(), hello.target
            self.state = states.move(self.state, Type.OFFER)
            return self._offer

    def receive_proof(self, data: bytes, now: float, release: Release) -> bytes:
        """`release`, encrypted for the app that proved itself. Raises `PeerError`; the handover is then over.

        1. it is the proof's turn, in time, and the message is one of this session
        2. the app's share is not ours come back
        3. the app's REPORT has the MAC that only this platform makes for this enclave
        4. the REPORT covers the hello, the offer and the app's share
        5. the REPORT is of the enclave that the hello named as target
        6. the app is one that the policy names
        7. the app derived the same keys
        """
        with self._refuse_on_error():
            # 1
            self.state = states.move(self.state, Type.PROOF)
            self._check_time(now)
            proof = Proof.parse(data)
            if self._share is None or self._target is None or proof.session != self.session:
                raise PeerError("handover-refused", "the proof is of another handover")
            # 2
            if proof.share == self._share.public:
                raise PeerError("handover-refused", "the proof carries the agent's own share")
            # 3
            body = self._verify(proof.report)
            # 4
            opening = Proof.encode_opening(proof.session, proof.share, proof.nonce)
            if not compare_digest(body.report_data, transcript.proof_report_data(self._hello, self._offer, opening)):
                raise PeerError("handover-refused", "the app's REPORT does not answer this handover")
            # 5
            if TargetInfo.of(body) != self._target:
                raise PeerError("handover-refused", "the proof is of another enclave than the hello")
            # 6
            self._app.check(body)
            # 7
            reported = proof.encode_reported()
            keys = transcript.derive_keys(self._share, proof.share, self._hello, self._offer, reported)
            keys.app_to_agent.decrypt(transcript.ONLY_NONCE, proof.confirmation, reported, code="handover-refused")
            opening = SealedRelease.encode_opening(self.session)
            answer = opening + keys.agent_to_app.encrypt(transcript.ONLY_NONCE, release.encode(), opening)
            if len(answer) > MAX_RELEASE_SIZE:
                raise UsageError("too-large", f"the release has {len(answer)} bytes; the limit is {MAX_RELEASE_SIZE}")
            self.state, self._share = states.move(self.state, Type.RELEASE), None
            return answer

    def _check_time(self, now: float) -> None:
        if now >= self._expires_at:
            raise PeerError("handover-refused", "the handover took too long and has expired")

    @contextmanager
    def _refuse_on_error(self) -> Iterator[None]:
        """A refusal is final, and drops the secrets at once."""
        try:
            yield
        except EnclaveCcError:
            self.state, self._share = State.REFUSED, None
            raise
