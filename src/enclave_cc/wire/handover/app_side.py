"""The app's side of a handover: proves what it is, accepts only from the agent it expects."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hmac import compare_digest

from enclave_cc.crypto.exchange import KeyShare
from enclave_cc.errors import EnclaveCcError, PeerError
from enclave_cc.wire.handover import states, transcript
from enclave_cc.wire.handover.messages import NONCE_SIZE, Hello, Offer, Proof, SealedRelease, Type, hash_container_id
from enclave_cc.wire.handover.release import Release
from enclave_cc.wire.handover.states import State
from enclave_cc.wire.sgx.identity import EnclaveIdentity
from enclave_cc.wire.sgx.report import Report, ReportBody, TargetInfo


class AppSide:
    """One handover, sans-io: `hello()` → `receive_offer(...)` → `receive_release(...)`.

    `report(target, data)` is EREPORT with 64 bytes of data; `verify(report)` checks a REPORT's MAC with the own
    report key and raises `PeerError("report-refused")`; `agent` is the measured policy on the agent's identity.
    """

    def __init__(
        self,
        *,
        container_id: str,
        target_info: TargetInfo,
        report: Callable[[TargetInfo, bytes], Report],
        verify: Callable[[Report], ReportBody],
        agent: EnclaveIdentity,
    ) -> None:
        self._container_id = container_id
        self._report, self._verify, self._agent = report, verify, agent
        self.state = State.NEW
        self._hello = Hello(container=hash_container_id(container_id), nonce=os.urandom(NONCE_SIZE), target=target_info).encode()
        self._session = b""
        self._keys: transcript.Keys | None = None

    def hello(self) -> bytes:
        """The first message, to be sent once."""
        self.state = states.move(self.state, Type.HELLO)
        return self._hello

    def receive_offer(self, data: bytes) -> bytes:
        """The proof that answers the agent's offer. Raises `PeerError`; the handover is then over.

        1. it is the offer's turn, and the message is one
        2. the agent's REPORT has the MAC that only this platform makes for this enclave
        3. the REPORT covers this hello and this offer
        4. the agent is the one that the policy names
        5. its share is usable
        """
        with self._refuse_on_error():
            # 1
            self.state = states.move(self.state, Type.OFFER)
            offer = Offer.parse(data)
            # 2
            body = self._verify(offer.report)
            # 3
            expected = transcript.offer_report_data(self._hello, offer.encode_opening(offer.session, offer.share))
            if not compare_digest(body.report_data, expected):
                raise PeerError("handover-refused", "the agent's REPORT does not answer this handover")
            # 4
            self._agent.check(body)
            # 5, in derive_keys
            share, nonce = KeyShare(), os.urandom(NONCE_SIZE)
            opening = Proof.encode_opening(offer.session, share.public, nonce)
            report = self._report(TargetInfo.of(body), transcript.proof_report_data(self._hello, data, opening))
            reported = opening + report.encode()
            self._keys = transcript.derive_keys(share, offer.share, self._hello, data, reported)
            confirmation = self._keys.app_to_agent.encrypt(transcript.ONLY_NONCE, b"", reported)
            self._session = offer.session
            self.state = states.move(self.state, Type.PROOF)
            return reported + confirmation

    def receive_release(self, data: bytes) -> Release:
        """What the agent released. Raises `PeerError`; the handover is then over.

        1. it is the release's turn, and the message is one of this session
        2. it authenticates under the agent's key
        3. its content is well-formed
        4. it is for this container
        """
        with self._refuse_on_error():
            # 1
            self.state = states.move(self.state, Type.RELEASE)
            sealed = SealedRelease.parse(data)
            if self._keys is None or sealed.session != self._session:
                raise PeerError("handover-refused", "the release is of another handover")
            # 2
            opening = SealedRelease.encode_opening(sealed.session)
            plain = self._keys.agent_to_app.decrypt(transcript.ONLY_NONCE, sealed.ciphertext, opening, code="handover-refused")
            # 3
            release = Release.parse(plain)
            # 4
            if release.launch.container_id != self._container_id:
                raise PeerError("handover-refused", "the release is for another container")
            self._keys = None
            return release

    @contextmanager
    def _refuse_on_error(self) -> Iterator[None]:
        """A refusal is final, and drops the secrets at once."""
        try:
            yield
        except EnclaveCcError:
            self.state, self._keys = State.REFUSED, None
            raise
