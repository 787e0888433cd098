"""From failed conditions to reasons: what a claim means, what came nearest to it, and what the owner can do.

The conditions come from `trace` and are those of the owner's own policies; what is known here is the meaning of claims.
"""

from __future__ import annotations

import functools
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from enclave_cc.errors import UsageError
from enclave_cc.owner.policy import layout, lint, rego, syntax, trace
from enclave_cc.owner.policy.reasons import Reason
from enclave_cc.owner.reference.values import EXPIRED, MR_ENCLAVE, RETIRED, ReferenceSource, ReferenceValue
from enclave_cc.record import record, replace
from enclave_cc.wire.rcar import canonical, token

# What else is known about a platform: {"fmspc", "needed": {"tcb_date", "status"}} or {}; from its collateral.
PlatformKnowledge = Callable[[Mapping[str, Any]], Mapping[str, Any]]


@record
class Context:
    """What explanations draw on beside the evidence. `now` is Unix seconds."""

    references: ReferenceSource
    now: float
    platform: PlatformKnowledge = lambda _sgx: {}


def explain_submod(name: str, submod: Mapping[str, Any], policy: rego.Policy, context: Context) -> list[Reason]:
    """A reason for each claim of a token's submodule that is not affirming."""
    evidence = submod.get(token.EVIDENCE)
    vector = submod.get(token.VECTOR)
    rule = f"trust_claims of attestation policy {policy.title}"
    reasons = []
    for claim, value in (vector if isinstance(vector, Mapping) else {}).items():
        tier = token.tier_of(value) if isinstance(value, int) else "contraindicated"
        if tier in ("warning", "contraindicated"):
            because = _explain_claim(claim, evidence, policy, context) if isinstance(evidence, Mapping) else ()
            advice = ""
            if not because:
                advice = "nothing of the policy fails now: a value was added or the policy changed meanwhile; attest again"
            reasons.append(
                Reason(f"submods.{name}.{claim}", f"{value} ({tier})", "2 to 31 (affirming)", rule, advice=advice, because=because)
            )
    if not reasons and submod.get(token.STATUS) != "affirming":
        reasons.append(Reason(f"submods.{name}.{token.STATUS}", submod.get(token.STATUS), "affirming", rule))
    return reasons


def explain_rule(
    policy: rego.Policy, rule: str, claims: Mapping[str, Any], data: Mapping[str, Any] | None, context: Context
) -> list[Reason]:
    """A reason for each condition of `rule` that failed; none when the policy cannot be followed."""
    try:
        failures = trace.trace(policy, rule, claims, data=data, lookup=context.references.query)
    except UsageError:
        return []
    evidence = claims if isinstance(claims.get("sgx"), Mapping) else {}
    return [_make_reason(failure, policy, evidence, context) for failure in failures]


_CACHED = 256
_cache: OrderedDict[bytes, tuple[Reason, ...]] = OrderedDict()
_cache_lock = threading.Lock()


def _explain_claim(claim: str, evidence: Mapping[str, Any], policy: rego.Policy, context: Context) -> tuple[Reason, ...]:
    """Kept for the same evidence: who attests again and again must not make us think again and again."""
    lasting = {name: value for name, value in evidence.items() if name not in ("runtime_data_claims", "report_data")}
    sgx = lasting.get("sgx")
    if isinstance(sgx, Mapping) and isinstance(sgx.get("body"), Mapping):
        lasting["sgx"] = {**sgx, "body": {**sgx["body"], "report_data": ""}}
    asked = _names_asked(policy.id, policy.text)
    known = {name: [(v.to_json(), v.state(context.now)) for v in context.references.history(name)] for name in asked}
    key = canonical.encode([claim, policy.id, policy.version, policy.digest, lasting, known])
    with _cache_lock:
        found = _cache.get(key)
    if found is None:
        rule = trace.rule_behind(policy, claim)
        failures = _only_of(evidence, trace.trace(policy, rule, evidence, lookup=context.references.query))
        found = tuple(_make_reason(failure, policy, evidence, context) for failure in failures)
        with _cache_lock:
            _cache[key] = found
            if len(_cache) > _CACHED:
                _cache.popitem(last=False)
    return found


@functools.lru_cache(maxsize=64)
def _names_asked(policy_id: str, text: str) -> tuple[str, ...]:
    """The reference values that a policy asks for by name, and those that advice looks at."""
    return tuple(sorted({MR_ENCLAVE, *(name for name, _ in lint.reference_names(syntax.parse(policy_id, text)))}))


def _only_of(evidence: Mapping[str, Any], failures: list[trace.Failure]) -> list[trace.Failure]:
    """Without the bodies for other kinds of evidence, which fail at `input.sample` and the like; if others are left."""
    tees = set(layout.ATTESTATION) - set(evidence)
    left = [failure for failure in failures if failure.path is None or len(failure.path) != 2 or failure.path[1] not in tees]
    return left or failures


def _make_reason(failure: trace.Failure, policy: rego.Policy, evidence: Mapping[str, Any], context: Context) -> Reason:
    path = failure.path
    claim = (
        ".".join(part if part is not None else "*" for part in (path if path[0] == "data" else path[1:])) if path else failure.rule
    )
    reason = Reason(
        claim=claim,
        found=failure.found,
        expected=failure.expected,
        rule=f"{failure.rule}: {failure.text}",
        place={"policy": policy.id, "version": policy.version, "line": failure.line},
        because=tuple(_make_reason(inner, policy, evidence, context) for inner in failure.because),
    )
    unset = [name for name in failure.names if context.references.query(name) is None]
    if path is None and unset:
        signer = unset[0] == "sgx_mr_signer"
        return replace(
            reason,
            claim=f"reference value {unset[0]}",
            expected="a value",
            advice="nothing is accepted by this name; that may be meant",
            command="enclave-cc refvals add --by-signer BUNDLE" if signer else f"enclave-cc refvals set {unset[0]} VALUE",
        )
    sgx = evidence.get("sgx")
    if isinstance(sgx, Mapping) and claim.startswith("sgx."):
        return _advise(reason, failure, sgx, context)
    if claim.startswith("data.resource-path"):
        return replace(reason, advice="the policy does not give this path to this attester; if it should, change the policy")
    return reason


def _advise(reason: Reason, failure: trace.Failure, sgx: Mapping[str, Any], context: Context) -> Reason:
    found = sgx.get("body")
    body: Mapping[str, Any] = found if isinstance(found, Mapping) else {}
    name = failure.names[0] if failure.names else ""
    match reason.claim:
        case "sgx.body.mr_enclave":
            reason = replace(reason, found=body.get("mr_enclave"), code="measurement-unknown")
            return _advise_measurement(reason, name or MR_ENCLAVE, body, context)
        case "sgx.body.mr_signer" | "sgx.body.isv_prod_id" | "sgx.body.isv_svn":
            identity = {each: body.get(each) for each in ("mr_signer", "isv_prod_id", "isv_svn")}
            return replace(
                reason,
                nearest=identity,
                advice="if this signer's product is meant, from this SVN on, add it",
                command="enclave-cc refvals add --by-signer BUNDLE",
            )
        case "sgx.tcb_status" | "sgx.tcb_date" | "sgx.advisory_ids":
            return _advise_tcb(reason, name or "sgx_tcb_status", sgx, context)
        case "sgx.body.attributes.flags":
            return replace(
                reason,
                found=body.get("attributes.flags"),
                expected="bit 1 (DEBUG) clear" if _is_debug(body) else reason.expected,
                advice="run a production enclave: a bundle built without --debug",
                command="enclave-cc bundle build agent --out DIR" if _is_debug(body) else "",
                code="debug-enclave" if _is_debug(body) else None,
            )
        case "sgx.collateral_expiration_status":
            return replace(reason, advice="refresh the collateral", command="enclave-cc kbs root add NAME --collateral FILE ...")
        case _ if name:
            return replace(
                reason,
                advice=f"if this is meant, add it to the reference value {name}",
                command=f"enclave-cc refvals set {name} VALUE",
            )
        case _:
            return reason


def _advise_measurement(reason: Reason, name: str, body: Mapping[str, Any], context: Context) -> Reason:
    known = context.references.history(name)
    measured = body.get("mr_enclave")
    same = next((value for value in known if value.value == measured), None)
    state = None if same is None else same.state(context.now)
    if same is not None and state == RETIRED and same.retired is not None:
        gone = same.retired
        return replace(
            reason,
            nearest={"value": measured, "how": "retired", **gone.to_json(), "source": dict(same.source)},
            advice=f"this measurement was retired on {_show_time(gone.at)} by {gone.by}"
            + (f": {gone.reason}" if gone.reason else "")
            + "; deploy a newer build, or take it back",
            command=f"enclave-cc refvals restore {name} {measured}",
        )
    if same is not None and state == EXPIRED and same.expires is not None:
        return replace(
            reason,
            nearest={"value": measured, "how": "expired", "expires": same.expires, "source": dict(same.source)},
            advice=f"this measurement expired on {_show_time(same.expires)}; if it is still good, add it with a later date",
            command="enclave-cc refvals add BUNDLE --expires DATE",
        )
    accepted = context.references.entries(name)
    expected = [value.value for value in accepted] if reason.expected is None else reason.expected
    return replace(
        reason,
        expected=expected,
        nearest=_nearest(body, accepted),
        advice="if this build is meant, add it",
        command="enclave-cc refvals add BUNDLE",
    )


def _advise_tcb(reason: Reason, name: str, sgx: Mapping[str, Any], context: Context) -> Reason:
    status = sgx.get("tcb_status")
    nearest = {each: sgx.get(each) for each in ("tcb_date", "advisory_ids", "fmspc") if sgx.get(each) is not None}
    nearest |= context.platform(sgx)
    return replace(
        reason,
        found=status if reason.claim == "sgx.tcb_status" else reason.found,
        nearest=nearest,
        advice="update the platform's microcode and BIOS to the level that is needed, or accept this status",
        command=f"enclave-cc refvals set {name} {status} UpToDate SWHardeningNeeded",
        code="tcb-refused",
    )


def _is_debug(body: Mapping[str, Any]) -> bool:
    try:
        return bool(int(str(body.get("attributes.flags"))[:2], 16) & 2)
    except ValueError:
        return True


def _nearest(body: Mapping[str, Any], accepted: Sequence[ReferenceValue]) -> dict[str, Any] | None:
    """The accepted measurement whose origin has most in common with the evidence; None when none has anything.

    Digests that look alike have nothing in common.
    """

    def compare(entry: ReferenceValue) -> tuple[bool, bool, bool]:
        return (
            entry.source.get("mr_signer") == body.get("mr_signer"),
            _little_endian(entry.source.get("isv_prod_id")) == body.get("isv_prod_id"),
            _little_endian(entry.source.get("isv_svn")) == body.get("isv_svn"),
        )

    if not accepted:
        return None
    best = max(accepted, key=compare)
    match compare(best):
        case (True, True, True):
            how = "another build of the same product and signer"
        case (True, True, False):
            how = "another version of the same product and signer"
        case (True, False, _):
            how = "another product of the same signer"
        case (False, True, _):
            how = "the same product by another signer"
        case _:
            return None
    return {"value": best.value, "how": how, "source": dict(best.source)}


def _little_endian(number: object) -> str | None:
    return number.to_bytes(2, "little").hex() if isinstance(number, int) and 0 <= number < 1 << 16 else None


def _show_time(at: int) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
