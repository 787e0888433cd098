"""Administrators' paths: what was decided, and whom the KBS trusts."""

from __future__ import annotations

from enclave_cc.errors import PeerError
from enclave_cc.owner.kbs.decisions import DecisionLog
from enclave_cc.owner.kbs.http import HttpAnswer, items_answer, json_answer, take_number
from enclave_cc.owner.kbs.roots import RootStore
from enclave_cc.owner.kbs.routing import Call, Route
from enclave_cc.record import record
from enclave_cc.wire.rcar import messages

_ADMIN = f"{messages.PREFIX}/admin"


@record
class DecisionPaths:
    decisions: DecisionLog
    roots: RootStore

    def routes(self) -> tuple[Route, ...]:
        return (
            Route("GET", f"{_ADMIN}/decisions", self._list),
            Route("GET", f"{_ADMIN}/decisions/{{id}}", self._read),
            Route("GET", f"{_ADMIN}/roots", self._list_roots),
        )

    def _list(self, call: Call) -> HttpAnswer:
        limit = take_number(call.request.query, "limit", low=1, high=10_000) or 100
        outcome = call.request.query.get("outcome")
        if outcome not in (None, "allow", "deny"):
            raise PeerError("malformed", "outcome is allow or deny")
        return items_answer([found.to_json() for found in self.decisions.list(outcome=outcome, limit=limit)])

    def _read(self, call: Call) -> HttpAnswer:
        return json_answer(self.decisions.find(call.parameters["id"]).to_json())

    def _list_roots(self, _: Call) -> HttpAnswer:
        return items_answer([{"name": root.name, "simulated": root.simulated} for root in self.roots.list_roots()])
