"""A replay's request to the two sets of rules that it compares; the same in the KBS and from an export.

    {"policies": {id: text}, "reference_values": [...], "retire": [{"name", "value"}], "at", "collateral": [documents]}

All optional; `at` is Unix seconds, a `value` of null stands for all of its name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from enclave_cc.errors import PeerError, UsageError, foreign
from enclave_cc.owner.collateral.source import CollateralSource
from enclave_cc.owner.kbs.evidence import EvidenceVerifier
from enclave_cc.owner.kbs.policies import check_id
from enclave_cc.owner.kbs.replay import Rules
from enclave_cc.owner.kbs.replay_evidence import make_reverifiers
from enclave_cc.owner.kbs.roots import RootSource
from enclave_cc.owner.policy.rego import Policy
from enclave_cc.owner.reference.values import LAST_SECOND, FixedReferences, ReferenceValue, Retirement
from enclave_cc.record import record, replace
from enclave_cc.wire.rcar import canonical
from enclave_cc.wire.sgx.collateral import Collateral

WHAT = "the replay request"


@record
class Present:
    """What is active: policies by id, every reference value, roots and their collateral."""

    policies: Mapping[str, Policy]
    values: Sequence[ReferenceValue]
    roots: RootSource
    collateral: CollateralSource


def make_rules(request: Mapping[str, Any], present: Present, now: float) -> tuple[Rules | None, Rules]:
    """(before, after). `before` is None when the request changes nothing: then what was decided is compared.

    Raises `PeerError`: "malformed" or "collateral-refused"; `UsageError`: "policy-invalid", "usage" or "not-found".
    """
    at = take_number(request, "at")
    policies = dict(present.policies)
    for policy_id, text in (canonical.take_object(request, "policies", WHAT) if "policies" in request else {}).items():
        check_id(policy_id)
        policies[policy_id] = Policy(policy_id, _take_text(text))
    values = list(present.values)
    if request.get("reference_values") is not None:
        values = [ReferenceValue.from_json(item) for item in _take_list(request, "reference_values")]
    for item in _take_list(request, "retire"):
        if not isinstance(item, Mapping):
            raise PeerError("malformed", f"what {WHAT} retires is no object")
        values = _retire(values, canonical.take_text(item, "name", WHAT), item.get("value"), int(now))
    collateral = [Collateral.parse(_take_text(document)) for document in _take_list(request, "collateral")]
    moment = now if at is None else float(at)
    verifiers: Mapping[str, EvidenceVerifier] = {}
    if at is not None or collateral:
        verifiers = make_reverifiers(present.roots, present.collateral, collateral, moment)
    after = Rules(policies, FixedReferences(values, moment), verifiers, moment)
    if policies == present.policies and values == list(present.values) and not verifiers:
        return None, after
    return Rules(present.policies, FixedReferences(present.values, now), {}, now), after


def take_number(request: Mapping[str, Any], name: str) -> int | None:
    """Raises `PeerError("malformed")` for anything but a number from 0 on, or none."""
    value = request.get(name)
    if value is None:
        return None
    if type(value) is not int or not 0 <= value <= LAST_SECOND:
        raise PeerError("malformed", f"{name} of {WHAT} is no number from 0 on")
    return value


def _retire(values: Sequence[ReferenceValue], name: str, value: Any, now: int) -> list[ReferenceValue]:
    chosen = [each for each in values if each.name == name and (value is None or each.value == value)]
    if not chosen:
        raise UsageError("not-found", f"there is no such reference value under {foreign(name)}", "See `enclave-cc refvals ls`.")
    gone = Retirement(now, "replay", "")
    return [replace(each, retired=gone) if each in chosen else each for each in values]


def _take_list(request: Mapping[str, Any], name: str) -> list[Any]:
    value = request.get(name, [])
    if not isinstance(value, list):
        raise PeerError("malformed", f"{name} of {WHAT} is no list")
    return value


def _take_text(value: object) -> str:
    if not isinstance(value, str):
        raise PeerError("malformed", f"a policy or document of {WHAT} is no text")
    return value
