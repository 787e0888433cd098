"""Judges recorded evidence and requests once more, by other rules: what would change if they were activated?

Rules are policies, reference values, and a time. Nothing is activated or written. Evidence is verified again only where a
time or collateral is given: otherwise the claims are those that were verified when it came. Runs in the KBS, for the admin
API, and on the owner's machine, from an export.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from enclave_cc.errors import PeerError, UsageError, foreign
from enclave_cc.owner.kbs import annotation
from enclave_cc.owner.kbs.evidence import EvidenceVerifier, VerifiedEvidence
from enclave_cc.owner.kbs.policies import find_most_specific
from enclave_cc.owner.kbs.recordings import ATTEST, Recording
from enclave_cc.owner.policy import appraisal, rego, release
from enclave_cc.owner.policy.reasons import Reason
from enclave_cc.owner.reference.values import FixedReferences
from enclave_cc.record import record, replace
from enclave_cc.wire.rcar import binding, messages
from enclave_cc.wire.rcar.initdata import InitData

REFUSED, ALLOW, DENY = "refused", "allow", "deny"
# Refusals of evidence that another date, other collateral or roots may undo. A wrong nonce, key or audience stays wrong.
_HEALED_BY_TIME = ("collateral-refused", "tcb-refused", "untrusted-root")


@record
class Rules:
    """One way to judge. `policies`: the active ones by id. `verifiers`: verify evidence again, at the rules' own time;
    none of a TEE: its recorded claims stand. `now`: for the age of reference values, Unix seconds."""

    policies: Mapping[str, rego.Policy]
    references: FixedReferences
    verifiers: Mapping[str, EvidenceVerifier]
    now: float

    def find_release(self, segments: Sequence[str]) -> rego.Policy:
        """Raises `UsageError("not-found")`."""
        return self._get(find_most_specific(self.policies, segments))

    def find_attestation(self, tee_class: str) -> rego.Policy:
        return self._get(annotation.attestation_policy_id(tee_class))

    def _get(self, policy_id: str) -> rego.Policy:
        if policy_id not in self.policies:
            raise UsageError("not-found", f"there is no policy {foreign(policy_id)}")
        return self.policies[policy_id]


@record
class Verdict:
    """`outcome`: of a request "allow" or "deny"; of evidence "refused", or the status of its appraisal."""

    outcome: str
    code: str | None = None
    reasons: tuple[Reason, ...] = ()
    submods: Mapping[str, Any] = ()  # type: ignore[assignment]  # of evidence that was not refused


@record
class Change:
    """Recordings of one kind whose verdict differs alike. `example` is the newest one's decision id, `reasons` its tree."""

    stage: str
    what: str
    before: str
    after: str
    code: str | None
    count: int
    first: int
    last: int
    example: str
    reasons: tuple[Mapping[str, Any], ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "stage": self.stage,
            "what": self.what,
            "before": self.before,
            "after": self.after,
            "code": self.code,
            "count": self.count,
            "first": self.first,
            "last": self.last,
            "example": self.example,
            "reasons": list(self.reasons),
        }


# The recorded attestation of a subject, None when it is no longer kept.
AttestationFinder = Callable[[str], Recording | None]


class Replay:
    """Compares two sets of rules over recordings, or one with what was decided then (`before` is None)."""

    def __init__(self, before: Rules | None, after: Rules, find_attestation: AttestationFinder) -> None:
        self._before = before
        self._after = after
        self._find = find_attestation
        self._judged: dict[tuple[str, int], Verdict | None] = {}
        self.changes: dict[tuple[object, ...], Change] = {}
        self.judged = 0
        self.skipped = 0

    def run(self, recordings: Sequence[Recording]) -> None:
        for each in recordings:
            before, after = self._judge_before(each), self._judge(each, self._after)
            if before is None or after is None:
                self.skipped += 1  # its attestation is no longer kept
                continue
            self.judged += 1
            if (before.outcome, before.code) != (after.outcome, after.code):
                self._note(each, before, after)

    def _judge_before(self, each: Recording) -> Verdict | None:
        if self._before is not None:
            return self._judge(each, self._before)
        if each.stage != ATTEST:
            return Verdict(each.outcome, each.code)
        # What status the evidence had was not recorded: who was accepted counts as unchanged unless it is refused now.
        now = self._judge(each, self._after)
        if each.outcome == DENY:
            return Verdict(REFUSED, each.code)
        return now if now is not None and now.outcome != REFUSED else Verdict("accepted")

    def _note(self, each: Recording, before: Verdict, after: Verdict) -> None:
        what = _describe(each, after if after.submods else before)
        key = (each.stage, what, before.outcome, after.outcome, after.code)
        known = self.changes.get(key)
        count, first = (known.count, known.first) if known is not None else (0, each.at)
        self.changes[key] = Change(
            each.stage,
            what,
            before.outcome,
            after.outcome,
            after.code,
            count + 1,
            min(first, each.at),
            each.at,
            each.decision,
            tuple(reason.to_json() for reason in after.reasons),
        )

    def _judge(self, each: Recording, rules: Rules) -> Verdict | None:
        if each.stage == ATTEST:
            return self._judge_attestation(each, rules)
        return self._judge_release(each, rules)

    def _judge_attestation(self, each: Recording, rules: Rules) -> Verdict:
        key = (each.subject, id(rules))
        known = self._judged.get(key)
        if known is None:
            known = self._judged[key] = _appraise(each, rules)
        return known

    def _judge_release(self, each: Recording, rules: Rules) -> Verdict | None:
        claims: Mapping[str, Any]
        if "claims" in each.document:
            claims = each.document["claims"]
        else:
            key = (each.subject, id(rules))
            if key not in self._judged:
                found = self._find(each.subject)
                self._judged[key] = None if found is None else _appraise(found, rules)
            attested = self._judged[key]
            if attested is None:
                return None
            if attested.outcome == REFUSED:  # no token, so nothing is even asked
                return Verdict(DENY, attested.code, attested.reasons)
            claims = {"submods": attested.submods}
        asked = each.document["request"]
        request = release.Request(str(asked["plugin"]), tuple(asked["segments"]), asked.get("query") or {})
        try:
            policy = rules.find_release(request.segments)
            verdict = release.decide(
                policy, claims, request, rules.references, appraiser=lambda kind: _find_quietly(rules, kind), now=rules.now
            )
        except UsageError as error:
            reason = Reason(str(request), error.what, "a policy that evaluates", "release policy", advice=error.fix)
            return Verdict(DENY, "kbs-denied", (reason,))
        if isinstance(verdict, release.Denial):
            return Verdict(DENY, verdict.code, verdict.reasons)
        if each.code == "key-missing":  # the policy let it pass then as now
            return Verdict(DENY, "key-missing")
        return Verdict(ALLOW)


def _find_quietly(rules: Rules, tee_class: str) -> rego.Policy | None:
    try:
        return rules.find_attestation(tee_class)
    except UsageError:
        return None


def _appraise(each: Recording, rules: Rules) -> Verdict:
    """As the broker judges an Attestation."""
    try:
        attestation = messages.Attestation.parse(str(each.document["body"]).encode(), rsa1_5=True)
        init_data = None if attestation.init_data is None else InitData.parse(attestation.init_data.body)
        verified = _verify(each, attestation, init_data, rules.verifiers)
        if verified is None:
            return Verdict(REFUSED, each.code)
        submods: dict[str, Any] = {}
        statuses = []
        for evidence in verified:
            annotated = annotation.annotate(evidence, attestation, init_data)
            judged = appraisal.appraise(rules.find_attestation(evidence.tee_class), annotated, rules.references)
            index = sum(1 for name in submods if name.rstrip("0123456789") == evidence.tee_class)
            submods[f"{evidence.tee_class}{index}"] = judged.to_submod()
            statuses.append(judged.status)
    except (PeerError, UsageError) as error:
        reason = Reason("evidence", error.what, "evidence that verifies", f"evidence of {each.document['tee']}", advice=error.fix)
        return Verdict(REFUSED, error.code if isinstance(error, PeerError) else "kbs-denied", (reason,))
    order = ("none", "affirming", "warning", "contraindicated")
    return Verdict(max(statuses, key=order.index), submods=submods)


def _verify(
    each: Recording, attestation: messages.Attestation, init_data: InitData | None, verifiers: Mapping[str, EvidenceVerifier]
) -> list[VerifiedEvidence] | None:
    """Verified again where there is a verifier; else as recorded, None for evidence that was refused then."""
    recorded = each.document.get("verified")
    known = None if recorded is None else [_read_verified(value) for value in recorded]
    tee = str(each.document["tee"])
    if tee not in verifiers or (known is None and each.code not in _HEALED_BY_TIME):
        return known
    key = attestation.tee_public_key
    primary = verifiers[tee].verify(
        attestation.primary_evidence,
        report_data=binding.compute_report_data(attestation.nonce, key, attestation.additional_evidence),
        init_data_digest=None if init_data is None else init_data.digest(),
    )
    return [primary, *(known[1:] if known is not None else ())]  # devices have verifiers without a clock


def _read_verified(value: Mapping[str, Any]) -> VerifiedEvidence:
    return VerifiedEvidence(value["tee"], value["tee_class"], value["claims"], value["report_data"], value["init_data"])


def _describe(each: Recording, verdict: Verdict) -> str:
    """What the change is about: the path that was asked for, or the enclave that attested."""
    if each.stage != ATTEST:
        return "/".join(str(segment) for segment in each.document["request"]["segments"])
    for submod in verdict.submods.values() if isinstance(verdict.submods, Mapping) else ():
        sgx = submod.get("ear.veraison.annotated-evidence", {}).get("sgx")
        if isinstance(sgx, Mapping):
            return f"mr_enclave {sgx.get('body', {}).get('mr_enclave')}, {sgx.get('tcb_status')}"
    return f"evidence of {each.document['tee']}"


def merge(groups: Sequence[Change]) -> list[Change]:
    """The groups of several pages, alike ones as one; the most frequent first."""
    merged: dict[tuple[object, ...], Change] = {}
    for each in groups:
        key = (each.stage, each.what, each.before, each.after, each.code)
        known = merged.get(key)
        merged[key] = each if known is None else replace(each, count=known.count + each.count, first=min(known.first, each.first))
    return sorted(merged.values(), key=lambda change: -change.count)
