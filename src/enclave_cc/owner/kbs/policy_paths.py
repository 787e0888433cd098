"""Administrators' paths: policies, upstream's two and ours."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import Any

from enclave_cc.errors import PeerError
from enclave_cc.owner.kbs.audit_trail import AuditTrail
from enclave_cc.owner.kbs.http import HttpAnswer, items_answer, json_answer
from enclave_cc.owner.kbs.policies import PolicyStore
from enclave_cc.owner.kbs.routing import Call, Route
from enclave_cc.owner.policy import defaults
from enclave_cc.record import record
from enclave_cc.wire.rcar import canonical, messages


@record
class PolicyPaths:
    policies: PolicyStore
    trail: AuditTrail

    def routes(self) -> tuple[Route, ...]:
        return (
            Route("GET", f"{messages.PREFIX}/resource-policy", self._list_release_policies),
            Route("POST", f"{messages.PREFIX}/resource-policy", self._set_release_policy),
            Route("POST", f"{messages.PREFIX}/attestation-policy", self._set_attestation_policy),
            Route("GET", f"{messages.PREFIX}/admin/policies", self._list),
            Route("GET", f"{messages.PREFIX}/admin/policies/{{id}}", self._read),
        )

    def _list_release_policies(self, _: Call) -> HttpAnswer:
        # Upstream lists the ids of its policies here, not their text.
        return json_answer([policy_id for policy_id, _ in self.policies.list() if policy_id == defaults.RELEASE_ID])

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

    def _set(self, call: Call, policy_id: str, body: Mapping[str, Any]) -> None:
        encoded = canonical.take_text(body, "policy", "the policy request")
        try:
            # kbs-client sends no padding; some callers of its API do.
            raw = base64.b64decode(encoded.rstrip("=") + "=" * (-len(encoded.rstrip("=")) % 4), altchars=b"-_", validate=True)
            text = raw.decode()
        except (binascii.Error, ValueError) as error:
            raise PeerError("malformed", "the policy is not base64url of UTF-8 text") from error
        self.trail.set_policy(call.administrator, self.policies.set(policy_id, text))

    def _list(self, _: Call) -> HttpAnswer:
        return items_answer([{"id": policy_id, "version": version} for policy_id, version in self.policies.list()])

    def _read(self, call: Call) -> HttpAnswer:
        policy = self.policies.get(call.parameters["id"])
        return json_answer({"id": policy.id, "version": policy.version, "digest": policy.digest, "text": policy.text})
