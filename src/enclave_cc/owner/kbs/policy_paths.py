"""Administrators' paths: policies, upstream's two and ours."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import Any

from enclave_cc.errors import PeerError
from enclave_cc.owner.audit import kinds
from enclave_cc.owner.kbs.audit_trail import AuditTrail
from enclave_cc.owner.kbs.http import HttpAnswer, items_answer, json_answer, take_number
from enclave_cc.owner.kbs.policies import PolicyStore
from enclave_cc.owner.kbs.routing import Call, Route
from enclave_cc.owner.policy import defaults
from enclave_cc.owner.policy.rego import Policy
from enclave_cc.record import record
from enclave_cc.wire.rcar import canonical, messages

_ADMIN = f"{messages.PREFIX}/admin/policies"
MAX_VERSION = (1 << 31) - 1


@record
class PolicyPaths:
    policies: PolicyStore
    trail: AuditTrail

    def routes(self) -> tuple[Route, ...]:
        return (
            Route("GET", f"{messages.PREFIX}/resource-policy", self._list_release_policies),
            Route("POST", f"{messages.PREFIX}/resource-policy", self._set_release_policy),
            Route("POST", f"{messages.PREFIX}/attestation-policy", self._set_attestation_policy),
            Route("GET", _ADMIN, self._list),
            Route("GET", f"{_ADMIN}/{{id*}}", self._read),
            Route("POST", f"{_ADMIN}/{{id*}}", self._write),
            Route("DELETE", f"{_ADMIN}/{{id*}}", self._deactivate),
            Route("POST", f"{messages.PREFIX}/admin/policy-activations", self._activate),
        )

    def _list_release_policies(self, _: Call) -> HttpAnswer:
        # Upstream lists the ids of its policies here, not their text.
        return json_answer([state.id for state in self.policies.list() if state.id == defaults.RELEASE_ID])

    def _set_release_policy(self, call: Call) -> HttpAnswer:
        self._set(call, defaults.RELEASE_ID, canonical.parse_object(call.body, "the policy request"))
        return HttpAnswer()

    def _set_attestation_policy(self, call: Call) -> HttpAnswer:
        body = canonical.parse_object(call.body, "the policy request")
        policy_id = canonical.take_text(body, "policy_id", "the policy request")
        if not policy_id.replace("_", "").replace("-", "").isalnum() or not policy_id.isascii() or len(policy_id) > 64:
            raise PeerError("malformed", "a policy id has letters, digits, _ and - only")
        if policy_id == defaults.RELEASE_ID:
            raise PeerError("malformed", "this id belongs to the release policy")
        self._set(call, policy_id, body)
        return HttpAnswer()

    def _set(self, call: Call, policy_id: str, body: Mapping[str, Any], *, draft: bool = False) -> Policy:
        encoded = canonical.take_text(body, "policy", "the policy request")
        try:
            # kbs-client sends no padding; some callers of its API do.
            raw = base64.b64decode(encoded.rstrip("=") + "=" * (-len(encoded.rstrip("=")) % 4), altchars=b"-_", validate=True)
            text = raw.decode()
        except (binascii.Error, ValueError) as error:
            raise PeerError("malformed", "the policy is not base64url of UTF-8 text") from error
        note = body.get("note", "")
        if not isinstance(note, str):
            raise PeerError("malformed", "the policy's note is no text")
        write = self.policies.add if draft else self.policies.set
        policy = write(policy_id, text, by=call.actor, note=note)
        self.trail.set_policy(call.administrator, policy, kinds.POLICY_DRAFTED if draft else kinds.POLICY_SET)
        return policy

    def _list(self, _: Call) -> HttpAnswer:
        return items_answer([state.to_json() for state in self.policies.list()])

    def _read(self, call: Call) -> HttpAnswer:
        policy_id, query = call.parameters["id"], call.request.query
        if "history" in query:
            return items_answer([version.to_json() for version in self.policies.history(policy_id)])
        policy = self.policies.get(policy_id, take_number(query, "version", low=1, high=MAX_VERSION))
        return json_answer(_to_json(policy))

    def _write(self, call: Call) -> HttpAnswer:
        body = canonical.parse_object(call.body, "the policy request")
        draft = body.get("draft", False)
        if not isinstance(draft, bool):
            raise PeerError("malformed", "draft is true or false")
        policy = self._set(call, call.parameters["id"], body, draft=draft)
        return json_answer({"id": policy.id, "version": policy.version, "digest": policy.digest, "active": not draft})

    def _deactivate(self, call: Call) -> HttpAnswer:
        policy_id = call.parameters["id"]
        self.policies.deactivate(policy_id, by=call.actor)
        self.trail.drop_policy(call.administrator, policy_id)
        return HttpAnswer()

    def _activate(self, call: Call) -> HttpAnswer:
        """{"activate": {id: version or null, ...}}, or {"roll_back": id}."""
        body = canonical.parse_object(call.body, "the activation")
        if "roll_back" in body:
            policy_id = canonical.take_text(body, "roll_back", "the activation")
            chosen = {policy_id: self.policies.roll_back(policy_id, by=call.actor)}
        else:
            wanted = canonical.take_object(body, "activate", "the activation")
            for version in wanted.values():
                if version is not None and (type(version) is not int or not 1 <= version <= MAX_VERSION):
                    raise PeerError("malformed", "a version is a number from 1 on, or null for the newest")
            if not wanted:
                raise PeerError("malformed", "the activation names no policy")
            chosen = self.policies.activate(wanted, by=call.actor)
        for policy_id, version in chosen.items():
            self.trail.set_policy(call.administrator, self.policies.get(policy_id, version), kinds.POLICY_ACTIVATED)
        return json_answer({"active": chosen})


def _to_json(policy: Policy) -> dict[str, Any]:
    return {"id": policy.id, "version": policy.version, "digest": policy.digest, "text": policy.text}
