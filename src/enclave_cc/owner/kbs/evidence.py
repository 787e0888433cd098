"""Evidence of each kind of TEE to verified claims. One verifier per kind, behind one interface."""

from __future__ import annotations

import base64
import binascii
import hmac
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from enclave_cc.errors import PeerError
from enclave_cc.record import record
from enclave_cc.wire.rcar import canonical


@record
class VerifiedEvidence:
    """Claims that a verifier vouches for, in the form attestation policies read.

    `report_data` and `init_data` are the evidence's own text forms of these fields, None where a TEE has none.
    """

    tee: str
    tee_class: str
    claims: Mapping[str, Any]
    report_data: str | None
    init_data: str | None


class EvidenceVerifier(Protocol):
    """Judges one kind of evidence."""

    tee: str

    def verify(self, evidence: object, *, report_data: bytes, init_data_digest: bytes | None) -> VerifiedEvidence:
        """`report_data`: the digest the evidence must bind; `init_data_digest`: likewise, None if none was sent.

        Raises `PeerError`: "malformed", "quote-refused", "debug-enclave", "untrusted-root", "tcb-refused" or
        "collateral-refused". The message is for the owner's log.
        """
        ...


class SampleVerifier:
    """`sample` evidence, which proves nothing: `{"svn", "report_data": b64}`. Only for protocol tests."""

    tee = "sample"

    def verify(self, evidence: object, *, report_data: bytes, init_data_digest: bytes | None) -> VerifiedEvidence:
        if not isinstance(evidence, Mapping):
            raise PeerError("malformed", "the sample evidence is not an object")
        text = canonical.take_text(evidence, "report_data", "the sample evidence")
        try:
            found = base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError) as error:
            raise PeerError("malformed", "the sample evidence's report_data is not base64") from error
        if not hmac.compare_digest(found, report_data):
            raise PeerError("quote-refused", "the evidence binds another nonce or key than this session's")
        claims = {
            "svn": canonical.take_text(evidence, "svn", "the sample evidence"),
            "launch_digest": "abcde",
            "platform_version": {"major": 1, "minor": 4},
            "debug": False,
        }
        init_data = None if init_data_digest is None else base64.b64encode(init_data_digest).decode()
        return VerifiedEvidence("sample", "cpu", claims, text, init_data)


def make_verifiers(tees: tuple[str, ...], roots: Any, *, now: Callable[[], float] = time.time) -> dict[str, EvidenceVerifier]:
    """The verifiers of the kinds of evidence that the configuration names."""
    made: dict[str, EvidenceVerifier] = {}
    if "sgx" in tees:
        from enclave_cc.owner.kbs.sgx_evidence import SgxVerifier

        made["sgx"] = SgxVerifier(roots, now=now)
    if "sample" in tees:
        made["sample"] = SampleVerifier()
    return made
