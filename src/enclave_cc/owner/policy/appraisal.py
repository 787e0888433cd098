"""Attestation policy: verified claims to a trustworthiness vector."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from enclave_cc.errors import UsageError
from enclave_cc.owner.policy import rego
from enclave_cc.owner.reference.values import ReferenceSource
from enclave_cc.record import field, record
from enclave_cc.wire.rcar import token

TRUST_CLAIMS = "data.policy.trust_claims"
EXTENSIONS = "data.policy.extensions"


@record
class Appraisal:
    """The judgement of one piece of evidence: what becomes a submodule of the token. `queried`: the reference values that
    the policy asked for, by name."""

    policy: rego.Policy
    vector: Mapping[str, int]
    extensions: Mapping[str, Any]
    evidence: Mapping[str, Any]
    queried: Mapping[str, Any] = field(default_factory=dict)

    @property
    def status(self) -> str:
        return token.status_of(self.vector)

    def to_submod(self) -> dict[str, Any]:
        """As EAR wants it; the policy's id is Trustee's, without the suffix of the TEE class."""
        return {
            token.STATUS: self.status,
            token.VECTOR: dict(self.vector),
            token.POLICY_ID: self.policy.id.rsplit("_", 1)[0],
            token.EVIDENCE: dict(self.evidence),
            **self.extensions,
        }


def appraise(policy: rego.Policy, evidence: Mapping[str, Any], references: ReferenceSource) -> Appraisal:
    """Judges `evidence`: the annotated-evidence map of verified claims.

    Raises `UsageError("policy-invalid")` when the policy does not give a vector: an object of known claims, integers
    of one signed byte, at least one not 0.
    """
    found = rego.evaluate(policy, (TRUST_CLAIMS, EXTENSIONS), evidence, lookup=references.query)
    vector = found.values[TRUST_CLAIMS]
    if not isinstance(vector, Mapping):
        raise UsageError("policy-invalid", f"attestation policy {policy.id} gives no trust_claims")
    for name, value in vector.items():
        if name not in token.CLAIMS:
            raise UsageError("policy-invalid", f"attestation policy {policy.id} sets the unknown trust claim {name!r}")
        if type(value) is not int or not -128 <= value <= 127:
            raise UsageError("policy-invalid", f"attestation policy {policy.id} sets {name} to no signed byte")
    if not any(vector.values()):
        raise UsageError("policy-invalid", f"attestation policy {policy.id} sets no trust claim")
    return Appraisal(policy, dict(vector), _read_extensions(policy, found.values[EXTENSIONS]), dict(evidence), found.queried)


def _read_extensions(policy: rego.Policy, value: Any) -> dict[str, Any]:
    """Named members that the policy adds to the submodule: [{"name", "key", "value"}]."""
    if value is None:
        return {}
    if not isinstance(value, list) or not all(isinstance(item, Mapping) and isinstance(item.get("name"), str) for item in value):
        raise UsageError("policy-invalid", f"attestation policy {policy.id} gives extensions that are not a list of named values")
    reserved = {token.STATUS, token.VECTOR, token.POLICY_ID, token.EVIDENCE}
    if any(item["name"] in reserved for item in value):
        raise UsageError("policy-invalid", f"attestation policy {policy.id} gives an extension a reserved name")
    return {item["name"]: item.get("value") for item in value}
