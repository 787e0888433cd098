"""Release policy: token claims and a request to allow, or deny with reasons."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from enclave_cc.owner.policy import reasons, rego
from enclave_cc.owner.reference.values import ReferenceSource
from enclave_cc.record import field, record

ALLOW = "data.policy.allow"


@record
class Request:
    """What is asked for: plugin, path behind it, query."""

    plugin: str
    segments: tuple[str, ...]
    query: Mapping[str, str] = field(default_factory=dict)

    def to_data(self) -> dict[str, Any]:
        return {"plugin": self.plugin, "resource-path": list(self.segments), "query": dict(self.query)}

    def __str__(self) -> str:
        return "/".join((self.plugin, *self.segments))


@record
class Permit:
    """The policy allows it. Only `decide` makes one."""

    request: Request
    policy: rego.Policy


@record
class Denial:
    """The policy does not allow it. `code` is public and speaks of the attester's own evidence only."""

    request: Request
    policy: rego.Policy
    code: str
    reasons: tuple[reasons.Reason, ...]


def decide(policy: rego.Policy, claims: Mapping[str, Any], request: Request, references: ReferenceSource) -> Permit | Denial:
    """Judges `request` by a verified token's `claims`. Anything but `allow == true` denies, a broken policy too."""
    allowed = rego.evaluate(policy, (ALLOW,), claims, data=request.to_data(), lookup=references.query).values[ALLOW]
    if allowed is True:
        return Permit(request, policy)
    submods = claims.get("submods")
    because = [
        reason
        for name, submod in sorted(submods.items() if isinstance(submods, Mapping) else ())
        if isinstance(submod, Mapping)
        for reason in reasons.explain_submod(name, submod, references)
    ]
    root = reasons.Reason(
        claim=str(request),
        found=f"allow = {json.dumps(allowed)}",
        expected="allow = true",
        rule=f"{ALLOW} of release policy {policy.id} version {policy.version}",
        advice="" if because else "the evidence is good; the policy itself does not allow this path: enclave-cc policy get release",
        because=tuple(because),
    )
    return Denial(request, policy, _public_code(because), (root,))


def _public_code(because: list[reasons.Reason]) -> str:
    """The first finding that has a code of its own; otherwise only that the owner's policy said no."""
    for reason in because:
        for inner in (*reason.because, reason):
            if inner.code is not None:
                return inner.code
    return "kbs-denied"
