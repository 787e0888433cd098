"""Why: a tree of reasons for the data owner. Nothing in here reaches a client or the host."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from enclave_cc.owner.reference.values import MR_ENCLAVE, MR_SIGNER, ReferenceSource, ReferenceValue
from enclave_cc.record import record
from enclave_cc.wire.rcar import token

# What the default attestation policy accepts without a reference value.
DEFAULT_TCB_STATUS = ("UpToDate", "SWHardeningNeeded")


@record
class Reason:
    """One finding: which claim, what was expected, what came nearest, which rule, what to do; and what lies behind."""

    claim: str
    found: Any
    expected: Any
    rule: str
    nearest: Any = None
    advice: str = ""
    code: str | None = None  # the public code that this finding justifies, if any
    because: tuple[Reason, ...] = ()

    def to_json(self) -> dict[str, Any]:
        value: dict[str, Any] = {"claim": self.claim, "found": self.found, "expected": self.expected, "rule": self.rule}
        for name, member in (("nearest", self.nearest), ("advice", self.advice), ("code", self.code)):
            if member:
                value[name] = member
        if self.because:
            value["because"] = [reason.to_json() for reason in self.because]
        return value


def explain_submod(name: str, submod: Mapping[str, Any], references: ReferenceSource) -> list[Reason]:
    """A reason for each claim of a token's submodule that is not affirming."""
    evidence = submod.get(token.EVIDENCE)
    sgx = evidence.get("sgx") if isinstance(evidence, Mapping) else None
    reasons = []
    vector = submod.get(token.VECTOR)
    for claim, value in (vector if isinstance(vector, Mapping) else {}).items():
        tier = token.tier_of(value) if isinstance(value, int) else "contraindicated"
        if tier in ("warning", "contraindicated"):
            because = _explain_sgx(claim, sgx, references) if isinstance(sgx, Mapping) else ()
            reasons.append(
                Reason(
                    claim=f"submods.{name}.{claim}",
                    found=f"{value} ({tier})",
                    expected="2 to 31 (affirming)",
                    rule=f"trust_claims of attestation policy {submod.get(token.POLICY_ID)}",
                    because=because,
                )
            )
    if not reasons and submod.get(token.STATUS) != "affirming":
        reasons.append(
            Reason(
                claim=f"submods.{name}.{token.STATUS}",
                found=submod.get(token.STATUS),
                expected="affirming",
                rule=f"trust_claims of attestation policy {submod.get(token.POLICY_ID)}",
            )
        )
    return reasons


def _explain_sgx(claim: str, sgx: Mapping[str, Any], references: ReferenceSource) -> tuple[Reason, ...]:
    """What the default policy would hold against the evidence. Nothing: a policy of the owner's own judged otherwise."""
    body = sgx.get("body", {})
    match claim:
        case "executables":
            return tuple(_explain_measurement(body, references))
        case "hardware":
            accepted = references.query("sgx_tcb_status") or DEFAULT_TCB_STATUS
            return () if sgx.get("tcb_status") in accepted else (_explain_tcb(sgx, accepted),)
        case "configuration":
            return (_explain_debug(body),) if _is_debug(body) else ()
        case _:
            return ()


def _explain_tcb(sgx: Mapping[str, Any], accepted: Any) -> Reason:
    return Reason(
        claim="sgx.tcb_status",
        found=sgx.get("tcb_status"),
        expected=accepted,
        nearest={"tcb_date": sgx.get("tcb_date"), "advisory_ids": sgx.get("advisory_ids")},
        rule="hardware: tcb_status in sgx_tcb_status",
        advice="update the platform's microcode, or list this status in the reference value sgx_tcb_status",
        code="tcb-refused",
    )


def _explain_debug(body: Mapping[str, Any]) -> Reason:
    return Reason(
        claim="sgx.body.attributes.flags",
        found=body.get("attributes.flags"),
        expected="bit 1 (DEBUG) clear",
        rule="configuration: no debug enclave",
        advice="run a production enclave",
        code="debug-enclave",
    )


def _is_debug(body: Mapping[str, Any]) -> bool:
    try:
        return bool(int(str(body.get("attributes.flags"))[:2], 16) & 2)
    except ValueError:
        return True


def _explain_measurement(body: Mapping[str, Any], references: ReferenceSource) -> list[Reason]:
    measured = {name: body.get(name) for name in ("mr_enclave", "mr_signer", "isv_prod_id", "isv_svn")}
    accepted = references.entries(MR_ENCLAVE)
    if any(entry.value == measured["mr_enclave"] for entry in accepted):
        return []  # known meanwhile: attesting again would give another token
    reasons = [
        Reason(
            claim="sgx.body.mr_enclave",
            found=measured["mr_enclave"],
            expected=[entry.value for entry in accepted],
            nearest=_nearest(measured, accepted),
            rule="executables: mr_enclave in sgx_mr_enclave",
            advice="if this build is meant, add it: enclave-cc refvals add REFERENCE.json",
            code="measurement-unknown",
        )
    ]
    if signers := references.entries(MR_SIGNER):
        reasons.append(
            Reason(
                claim="sgx.body.mr_signer",
                found=measured,
                expected=[entry.value for entry in signers],
                rule="executables: signer, product and SVN in sgx_mr_signer",
                advice="if this signer is meant, add it: enclave-cc refvals add --by-signer REFERENCE.json",
            )
        )
    return reasons


def _nearest(measured: Mapping[str, Any], accepted: Sequence[ReferenceValue]) -> dict[str, Any] | None:
    """The accepted measurement whose origin has most in common with the evidence; None when none has anything.

    Digests that look alike have nothing in common.
    """

    def compare(entry: ReferenceValue) -> tuple[bool, bool, bool]:
        return (
            entry.source.get("mr_signer") == measured["mr_signer"],
            _little_endian(entry.source.get("isv_prod_id")) == measured["isv_prod_id"],
            _little_endian(entry.source.get("isv_svn")) == measured["isv_svn"],
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
