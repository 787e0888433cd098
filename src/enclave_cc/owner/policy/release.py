"""Release policy: token claims and a request to allow, or deny with reasons."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from enclave_cc.owner.policy import defaults, explanation, reasons, rego
from enclave_cc.owner.reference.values import ReferenceSource
from enclave_cc.record import field, record
from enclave_cc.wire.rcar import token

ALLOW = "data.policy.allow"

# The attestation policy of a TEE class, None when there is none.
Appraiser = Callable[[str], rego.Policy | None]


@record
class Request:
    """What is asked for: plugin, path behind it, query."""

    plugin: str
    segments: tuple[str, ...]
    query: Mapping[str, str] = field(default_factory=dict)

    def to_data(self) -> dict[str, Any]:
        return {"plugin": self.plugin, "resource-path": list(self.segments), "query": dict(self.query)}

    def to_json(self) -> dict[str, Any]:
        return {"plugin": self.plugin, "segments": list(self.segments), "query": dict(self.query)}

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


def decide(
    policy: rego.Policy,
    claims: Mapping[str, Any],
    request: Request,
    references: ReferenceSource,
    *,
    appraiser: Appraiser | None = None,
    platform: explanation.PlatformKnowledge = lambda _sgx: {},
    now: float = 0.0,
) -> Permit | Denial:
    """Judges `request` by a verified token's `claims`. Anything but `allow == true` denies, a broken policy too.

    `appraiser`, `platform` and `now` serve the reasons of a denial alone.
    """
    data = request.to_data()
    allowed = rego.evaluate(policy, (ALLOW,), claims, data=data, lookup=references.query).values[ALLOW]
    if allowed is True:
        return Permit(request, policy)
    context = explanation.Context(references, now, platform)
    submods = claims.get("submods")
    evidence = [
        reason
        for name, submod in sorted(submods.items() if isinstance(submods, Mapping) else ())
        if isinstance(submod, Mapping)
        for reason in _explain_submod(name, submod, appraiser or _default_appraiser, context)
    ]
    conditions = explanation.explain_rule(policy, "allow", claims, data, context)
    because = _combine(conditions, evidence)
    root = reasons.Reason(
        claim=str(request),
        found=f"allow = {json.dumps(allowed)}",
        expected="allow = true",
        rule=f"{ALLOW} of release policy {policy.title}",
        place={"policy": policy.id, "version": policy.version},
        advice="" if because else "the evidence is good; the policy itself does not allow this path",
        command="" if because else f"enclave-cc policy get {policy.id}",
        because=tuple(because),
    )
    return Denial(request, policy, _public_code(evidence), (root,))


def _default_appraiser(tee_class: str) -> rego.Policy | None:
    return rego.Policy(f"default_{tee_class}", defaults.read_default(defaults.ATTESTATION_ID)) if tee_class == "cpu" else None


def _explain_submod(
    name: str, submod: Mapping[str, Any], appraiser: Appraiser, context: explanation.Context
) -> list[reasons.Reason]:
    policy = appraiser(name.rstrip("0123456789"))
    if policy is not None:
        return explanation.explain_submod(name, submod, policy, context)
    status = submod.get(token.STATUS)
    return [] if status == "affirming" else [reasons.Reason(f"submods.{name}.{token.STATUS}", status, "affirming", "no policy")]


def _combine(conditions: list[reasons.Reason], evidence: list[reasons.Reason]) -> list[reasons.Reason]:
    """The evidence's reasons in place of the conditions that merely ask whether the evidence is good."""
    if not evidence:
        return conditions

    def is_covered(reason: reasons.Reason) -> bool:
        if reason.claim.startswith("submods"):
            return reason.claim == "submods" or reason.claim.endswith(token.STATUS) or token.VECTOR in reason.claim
        return False

    return [*evidence, *(reason for reason in conditions if not is_covered(reason))]


def _public_code(because: list[reasons.Reason]) -> str:
    """The first finding that has a code of its own; otherwise only that the owner's policy said no."""
    return next((code for reason in because for code in reason.codes), "kbs-denied")
