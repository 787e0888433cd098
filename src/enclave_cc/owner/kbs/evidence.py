"""Evidence of each kind of TEE to verified claims. One verifier per kind, behind one interface.

`tests/suites/evidence_verifier.py` is what every verifier must pass, a third party's too.
"""

from __future__ import annotations

import base64
import binascii
import hmac
from collections.abc import Mapping
from typing import Any, Protocol

from enclave_cc.errors import PeerError
from enclave_cc.record import record
from enclave_cc.wire.rcar import canonical

# What `verify` may raise; anything else is a verifier's bug.
CODES = frozenset(
    ("malformed", "quote-refused", "debug-enclave", "untrusted-root", "tcb-refused", "collateral-refused", "measurement-unknown")
)


@record
class VerifiedEvidence:
    """Claims that a verifier vouches for, in the form attestation policies read.

    `report_data` and `init_data` are the evidence's own text forms of these fields, None where a TEE has none.
    `tee_class`: "cpu", or a device's, such as "gpu"; it names the submodule and chooses the attestation policy.
    """

    tee: str
    tee_class: str
    claims: Mapping[str, Any]
    report_data: str | None
    init_data: str | None


class EvidenceVerifier(Protocol):
    """Judges one kind of evidence. Safe for many threads, and never slow: an attester waits."""

    tee: str

    def verify(self, evidence: object, *, report_data: bytes, init_data_digest: bytes | None) -> VerifiedEvidence:
        """`evidence`: the attester's JSON, hostile. `report_data`: the digest (48 bytes) it must bind;
        `init_data_digest`: likewise (32, 48 or 64 bytes), None if no init-data was sent, which must not pass for evidence
        that binds some.

        Raises `PeerError` with one of `CODES`. The message is for the owner's log.
        """
        ...


class SampleVerifier:
    """`sample` evidence, which proves nothing: `{"svn", "report_data": b64}`. Only for protocol tests."""

    tee = "sample"

    def verify(self, evidence: object, *, report_data: bytes, init_data_digest: bytes | None) -> VerifiedEvidence:
        text = _check_binding(evidence, report_data)
        claims = {
            "svn": canonical.take_text(_as_object(evidence), "svn", "the sample evidence"),
            "launch_digest": "abcde",
            "platform_version": {"major": 1, "minor": 4},
            "debug": False,
        }
        init_data = None if init_data_digest is None else base64.b64encode(init_data_digest).decode()
        return VerifiedEvidence("sample", "cpu", claims, text, init_data)


class SampleDeviceVerifier:
    """`sampledevice` evidence, which proves nothing either: a device beside a TEE. Only for protocol tests."""

    tee = "sampledevice"

    def verify(self, evidence: object, *, report_data: bytes, init_data_digest: bytes | None) -> VerifiedEvidence:
        text = _check_binding(evidence, report_data)
        claims = {"svn": canonical.take_text(_as_object(evidence), "svn", "the sample evidence"), "report_data": text}
        return VerifiedEvidence("sampledevice", "gpu", claims, text, None)


def _as_object(evidence: object) -> Mapping[str, Any]:
    if not isinstance(evidence, Mapping):
        raise PeerError("malformed", "the sample evidence is not an object")
    return evidence


def _check_binding(evidence: object, report_data: bytes) -> str:
    text = canonical.take_text(_as_object(evidence), "report_data", "the sample evidence")
    try:
        found = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise PeerError("malformed", "the sample evidence's report_data is not base64") from error
    if not hmac.compare_digest(found, report_data):
        raise PeerError("quote-refused", "the evidence binds another nonce or key than this session's")
    return text
