"""The attestation token's payload: an EAR (draft-ietf-rats-ear) as Trustee fills it.

Names and values only; signing is `crypto.jws`, issuing and judging are the KBS's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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


EAR_KEY = f"/submods/cpu0/{EVIDENCE}/runtime_data_claims/tee-pubkey"
# Where issuers put the key, in the order in which Trustee's KBS looks (`kbs/src/token/mod.rs`).
KEY_POINTERS = (
    "/tdx/attester_runtime_data/tee-pubkey",
    "/tdx/attester_user_data/tee-pubkey",
    "/customized_claims/runtime_data/tee-pubkey",
    EAR_KEY,
    "/tee-pubkey",
)


def find_tee_key(payload: Mapping[str, Any], pointers: Sequence[str] = (EAR_KEY,), *, rsa1_5: bool = False) -> PublicJwk:
    """The key that answers are encrypted to: the first that a JSON pointer (RFC 6901) of `pointers` finds.

    Raises `PeerError("unauthenticated")` if the token carries none, or one that is not usable.
    """
    for pointer in pointers:
        candidate = _follow(payload, pointer)
        if candidate is not None:
            try:
                return PublicJwk.parse(candidate, rsa1_5=rsa1_5)
            except PeerError as error:
                raise PeerError("unauthenticated", "the token's TEE key is not usable") from error
    raise PeerError("unauthenticated", "the token carries no TEE key")


def _follow(value: Any, pointer: str) -> Any:
    for part in pointer.split("/")[1:]:
        value = value.get(part.replace("~1", "/").replace("~0", "~")) if isinstance(value, Mapping) else None
    return value
