"""What happens to be in the log: kinds of entries, and what is asked to be appended."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from enclave_cc.errors import UsageError
from enclave_cc.record import record
from enclave_cc.wire.audit.entry import encode_document, is_kind, is_subject

START, STOP = "start", "stop"
ATTESTATION, RELEASE, DENIAL = "attestation", "release", "denial"
RESOURCE_SET, RESOURCE_REMOVED, RESOURCE_READ = "resource-set", "resource-removed", "resource-read"
RESOURCE_TAGGED, STORE_REKEYED = "resource-tagged", "store-rekeyed"
POLICY_SET, POLICY_ACTIVATED = "policy-set", "policy-activated"
POLICY_DRAFTED, POLICY_DEACTIVATED = "policy-drafted", "policy-deactivated"
REFERENCES_ADDED, REFERENCES_REPLACED, REFERENCES_REMOVED = (
    "reference-values-added",
    "reference-values-replaced",
    "reference-values-removed",
)
REFERENCES_RETIRED, REFERENCES_RESTORED = "reference-values-retired", "reference-values-restored"
REFERENCE_SIGNER_ADDED, REFERENCE_SIGNER_REMOVED = "reference-signer-added", "reference-signer-removed"
ROOT_ADDED, ROOT_REMOVED, COLLATERAL_SET = "root-added", "root-removed", "collateral-set"
LOCAL = {"local": True}
"""Who: a command on the KBS's own directory."""


@record
class Draft:
    """An entry before it has its place.

    `subject`: the path that it is about; `attestation`: the decision by which who asks was accepted; `attested`: that
    decision, in the entry about it.
    Made ready for appending here, in the caller's thread, so that one that cannot be appended troubles no other."""

    kind: str
    document: bytes  # canonical JSON
    subject: str | None = None
    attestation: str | None = None
    attested: str | None = None

    @classmethod
    def make(
        cls,
        kind: str,
        document: Mapping[str, Any],
        *,
        subject: str | None = None,
        decision: str | None = None,
        attestation: str | None = None,
    ) -> Draft:
        """Raises `UsageError("usage")` for what no entry can hold."""
        if not is_kind(kind) or (subject is not None and not is_subject(subject)):
            raise UsageError("usage", "an audit entry has a kind or a path that cannot be")
        ids = {"decision": decision, "attestation": attestation}
        members = {**document, **{name: value for name, value in ids.items() if value is not None}}
        # An index of all decisions would cost each append a page somewhere in it.
        return cls(kind, encode_document(members), subject, attestation, decision if kind == ATTESTATION else None)
