"""The attestation token's payload: an EAR (draft-ietf-rats-ear) as Trustee fills it.

Names and values only; signing is `crypto.jws`, issuing and judging are the KBS's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from enclave_cc.crypto.jwk import PublicJwk
from enclave_cc.errors import PeerError

PROFILE = "tag:github.com,2024:confidential-containers/Trustee"
STATUS = "ear.status"
VECTOR = "ear.trustworthiness-vector"
POLICY_ID = "ear.appraisal-policy-id"
EVIDENCE = "ear.veraison.annotated-evidence"
VERIFIER_ID = "ear.verifier-id"

# The trustworthiness vector's claims (AR4SI section 2.3).
CLAIMS = (
    "instance-identity",
    "configuration",
    "executables",
    "file-system",
    "hardware",
    "runtime-opaque",
    "storage-opaque",
    "sourced-data",
)


def tier_of(value: int) -> str:
    """AR4SI's tier of one claim: "none", "affirming", "warning" or "contraindicated". Values are signed bytes."""
    if -1 <= value <= 1:
        return "none"
    magnitude = value if value > 0 else -value - 1  # AR4SI mirrors the negative half, shifted by one
    if magnitude < 32:
        return "affirming"
    return "warning" if magnitude < 96 else "contraindicated"


_ORDER = ("none", "affirming", "warning", "contraindicated")


def status_of(vector: Mapping[str, int]) -> str:
    """The worst tier of a vector."""
    return max((tier_of(value) for value in vector.values()), key=_ORDER.index, default="none")


def find_tee_key(payload: Mapping[str, Any]) -> PublicJwk:
    """The key that answers are encrypted to: `tee-pubkey` of the first CPU's runtime data, else of the top level, as
    other issuers put it. Raises `PeerError("unauthenticated")` if the token carries none."""
    submods = payload.get("submods")
    candidates: list[object] = []
    if isinstance(submods, Mapping):
        cpu = submods.get("cpu0")
        evidence = cpu.get(EVIDENCE) if isinstance(cpu, Mapping) else None
        runtime = evidence.get("runtime_data_claims") if isinstance(evidence, Mapping) else None
        if isinstance(runtime, Mapping):
            candidates.append(runtime.get("tee-pubkey"))
    candidates.append(payload.get("tee-pubkey"))
    for candidate in candidates:
        if candidate is not None:
            try:
                return PublicJwk.parse(candidate)
            except PeerError as error:
                raise PeerError("unauthenticated", "the token's TEE key is not usable") from error
    raise PeerError("unauthenticated", "the token carries no TEE key")
