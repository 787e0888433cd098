"""Administrators' paths: replay of recorded evidence, and its export. Nothing here changes anything."""

from __future__ import annotations

import base64
import time
from collections.abc import Mapping
from typing import Any

from enclave_cc.errors import PeerError
from enclave_cc.owner.collateral.stored import StoredCollateral
from enclave_cc.owner.kbs.evidence import EvidenceVerifier
from enclave_cc.owner.kbs.http import HttpAnswer, items_answer, json_answer
from enclave_cc.owner.kbs.policies import PolicyStore, check_id
from enclave_cc.owner.kbs.recordings import Recorder
from enclave_cc.owner.kbs.replay import FixedValues, Replay, Rules, override
from enclave_cc.owner.kbs.replay_evidence import make_reverifiers
from enclave_cc.owner.kbs.roots import RootStore
from enclave_cc.owner.kbs.routing import Call, Route
from enclave_cc.owner.policy.rego import Policy
from enclave_cc.owner.reference.store import ReferenceStore
from enclave_cc.owner.reference.values import LAST_SECOND, ReferenceValue, Retirement
from enclave_cc.record import record, replace
from enclave_cc.wire.rcar import canonical, messages
from enclave_cc.wire.sgx.collateral import Collateral

_ADMIN = f"{messages.PREFIX}/admin"
MAX_PAGE = 1000
_WHAT = "the replay request"


@record
class ReplayPaths:
    recorder: Recorder
    policies: PolicyStore
    references: ReferenceStore
    roots: RootStore

    def routes(self) -> tuple[Route, ...]:
        return (
            Route("POST", f"{_ADMIN}/replay", self._replay),
            Route("GET", f"{_ADMIN}/recordings", self._list),
            Route("GET", f"{_ADMIN}/replay-rules", self._export_rules),
        )

    def _replay(self, call: Call) -> HttpAnswer:
        """{"policies": {id: text}, "reference_values": [...], "retire": [{"name", "value"}], "at", "since", "collateral":
        [documents], "after", "limit"}, all optional, to {"changes", "judged", "skipped", "next"}; `next` is the `after` of
        the following page, null when there is none."""
        body = canonical.parse_object(call.body, _WHAT)
        after, limit = _number(body, "after", 0), _number(body, "limit", 200)
        since, at = _optional_number(body, "since"), _optional_number(body, "at")
        if not 1 <= limit <= MAX_PAGE:
            raise PeerError("malformed", f"limit is 1 to {MAX_PAGE}")
        recordings = self.recorder.list(after=after, since=since, limit=limit)
        replay = Replay(*self._make_rules(body, at), self.recorder.find_attestation)
        replay.run(recordings)
        return json_answer(
            {
                "changes": [change.to_json() for change in replay.changes.values()],
                "judged": replay.judged,
                "skipped": replay.skipped,
                "next": recordings[-1].number if len(recordings) == limit else None,
            }
        )

    def _make_rules(self, body: Mapping[str, Any], at: int | None) -> tuple[Rules | None, Rules]:
        now, values, policies = time.time(), self.references.list(), self.policies.snapshot()
        active = Rules(policies, FixedValues(values, now), {}, now)
        collateral = [Collateral.parse(_take_text(document)) for document in _take_list(body, "collateral")]
        changed = dict(policies)
        for policy_id, text in (canonical.take_object(body, "policies", _WHAT) if "policies" in body else {}).items():
            check_id(policy_id)
            changed[policy_id] = Policy(policy_id, _take_text(text))
        given = body.get("reference_values")
        others = values if given is None else [ReferenceValue.from_json(item) for item in _take_list(body, "reference_values")]
        retired = [
            (canonical.take_text(item, "name", _WHAT), item.get("value"))
            for item in _take_list(body, "retire")
            if isinstance(item, Mapping)
        ]
        others = override(others, retired, lambda value: replace(value, retired=Retirement(int(now), "replay", "")))
        moment = now if at is None else float(at)
        verifiers: Mapping[str, EvidenceVerifier] = {}
        if at is not None or collateral:
            verifiers = make_reverifiers(self.roots, StoredCollateral(self.roots), collateral, moment)
        after = Rules(changed, FixedValues(others, moment), verifiers, moment)
        nothing = changed == policies and given is None and not retired and not verifiers
        return None if nothing else active, after

    def _list(self, call: Call) -> HttpAnswer:
        query = call.request.query
        numbers = {name: query.get(name, default) for name, default in (("after", "0"), ("limit", "200"), ("since", "0"))}
        if not all(text.isdecimal() and len(text) < 16 for text in numbers.values()):
            raise PeerError("malformed", "after, limit and since are numbers")
        after, limit, since = (int(numbers[name]) for name in ("after", "limit", "since"))
        if not 1 <= limit <= MAX_PAGE:
            raise PeerError("malformed", f"limit is 1 to {MAX_PAGE}")
        return items_answer([each.to_json() for each in self.recorder.list(after=after, since=since, limit=limit)])

    def _export_rules(self, _: Call) -> HttpAnswer:
        """What a replay elsewhere needs: active policies, reference values, roots and their collateral."""
        return json_answer(
            {
                "at": int(time.time()),
                "policies": [
                    {"id": policy.id, "version": policy.version, "text": policy.text}
                    for policy in self.policies.snapshot().values()
                ],
                "reference_values": [value.to_json() for value in self.references.list()],
                "roots": [
                    {
                        "name": root.name,
                        "certificate": base64.b64encode(root.certificate).decode(),
                        "simulated": root.simulated,
                    }
                    for root in self.roots.list_roots()
                ],
                "collateral": [
                    {"root": each.root, "fmspc": each.fmspc, "ca": each.ca, "document": each.document}
                    for each in self.roots.list_collateral()
                ],
            }
        )


def _take_list(body: Mapping[str, Any], name: str) -> list[Any]:
    value = body.get(name, [])
    if not isinstance(value, list):
        raise PeerError("malformed", f"{name} of {_WHAT} is no list")
    return value


def _take_text(value: object) -> str:
    if not isinstance(value, str):
        raise PeerError("malformed", f"a policy or document of {_WHAT} is no text")
    return value


def _number(body: Mapping[str, Any], name: str, default: int) -> int:
    found = _optional_number(body, name)
    return default if found is None else found


def _optional_number(body: Mapping[str, Any], name: str) -> int | None:
    value = body.get(name)
    if value is None:
        return None
    if type(value) is not int or not 0 <= value <= LAST_SECOND:
        raise PeerError("malformed", f"{name} of {_WHAT} is no number from 0 on")
    return value
