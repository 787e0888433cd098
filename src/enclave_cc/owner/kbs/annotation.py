"""What attestation policies see of verified evidence: Trustee's annotated-evidence map."""

from __future__ import annotations

from typing import Any

from enclave_cc.owner.kbs.evidence import VerifiedEvidence
from enclave_cc.owner.policy import defaults
from enclave_cc.wire.rcar.initdata import InitData
from enclave_cc.wire.rcar.messages import Attestation


def annotate(verified: VerifiedEvidence, attestation: Attestation, init_data: InitData | None) -> dict[str, Any]:
    """The claims under the name of their TEE, and what the evidence binds beside them."""
    evidence = {
        verified.tee: verified.claims,
        "report_data": verified.report_data,
        "runtime_data_claims": {
            "additional-evidence": attestation.additional_evidence,
            "nonce": attestation.nonce,
            "tee-pubkey": dict(attestation.tee_public_key.members),
        },
    }
    if verified.init_data is not None:
        evidence["init_data"] = verified.init_data
        evidence["init_data_claims"] = None if init_data is None else init_data.claims()
    return evidence


def attestation_policy_id(tee_class: str) -> str:
    """The policy that judges evidence of a class: `default_cpu` for "cpu"."""
    return f"{defaults.ATTESTATION_ID.rsplit('_', 1)[0]}_{tee_class}"
