"""Handover messages and the release document take any bytes; what parses encodes to the same bytes."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "suites"))

from handover_pair import Pair

from enclave_cc.errors import PeerError
from enclave_cc.wire.handover.messages import Hello, Offer, Proof, SealedRelease
from enclave_cc.wire.handover.release import Release

_pair = Pair()
_app, _agent = _pair.app_side(), _pair.agent_side()
_hello = _app.hello()
_offer = _agent.receive_hello(_hello, 101.0)
_proof = _app.receive_offer(_offer)
SEEDS = [_hello, _offer, _proof, _agent.receive_proof(_proof, 102.0, _pair.release), _pair.release.encode()]


def target(data: bytes) -> None:
    for cls in (Hello, Offer, Proof, SealedRelease):
        try:
            assert cls.parse(data).encode() == data
        except PeerError:
            continue
    with contextlib.suppress(PeerError):
        Release.parse(data)
    agent, app = _pair.agent_side(), _pair.app_side()
    app.hello()
    for take in (lambda: agent.receive_hello(data, 101.0), lambda: app.receive_offer(data)):
        try:
            take()
        except PeerError:
            continue
