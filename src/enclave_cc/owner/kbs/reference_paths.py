"""Administrators' paths: reference values."""

from __future__ import annotations

import hashlib
import json

from enclave_cc.errors import PeerError
from enclave_cc.owner.audit import kinds
from enclave_cc.owner.kbs.audit_trail import AuditTrail
from enclave_cc.owner.kbs.http import HttpAnswer, items_answer, json_answer
from enclave_cc.owner.kbs.routing import Call, Route
from enclave_cc.owner.reference import rvps
from enclave_cc.owner.reference import values as reference
from enclave_cc.owner.reference.store import ReferenceStore
from enclave_cc.record import record
from enclave_cc.wire.rcar import canonical, messages

_ADMIN = f"{messages.PREFIX}/admin/reference-values"
_NAMES = 100  # in the audit log; a request of more has its digest there


@record
class ReferencePaths:
    references: ReferenceStore
    trail: AuditTrail

    def routes(self) -> tuple[Route, ...]:
        return (
            Route("POST", f"{messages.PREFIX}/reference-value", self._register),
            Route("GET", f"{messages.PREFIX}/reference-value/{{id*}}", self._query),
            Route("GET", _ADMIN, self._list),
            Route("POST", _ADMIN, self._add),
            Route("DELETE", _ADMIN, self._remove),
        )

    def _register(self, call: Call) -> HttpAnswer:
        values = rvps.parse_message(call.body)
        self.references.replace(values)
        self._record(kinds.REFERENCES_REPLACED, call, [value.name for value in values])
        return HttpAnswer()

    def _query(self, call: Call) -> HttpAnswer:
        return json_answer(self.references.query(call.parameters["id"]))

    def _list(self, _: Call) -> HttpAnswer:
        return items_answer([value.to_json() for value in self.references.list()])

    def _add(self, call: Call) -> HttpAnswer:
        items = canonical.parse_object(call.body, "the reference values").get("values")
        if not isinstance(items, list):
            raise PeerError("malformed", "the reference values have no list 'values'")
        added = [reference.ReferenceValue.from_json(item) for item in items]
        self.references.add(added)
        self._record(kinds.REFERENCES_ADDED, call, [value.name for value in added])
        return HttpAnswer()

    def _remove(self, call: Call) -> HttpAnswer:
        query = call.request.query
        name = query.get("name")
        if name is None:
            raise PeerError("malformed", "the query has no name")
        try:
            value = json.loads(query["value"]) if "value" in query else None
        except (ValueError, RecursionError) as error:
            raise PeerError("malformed", "the query's value is not JSON") from error
        self.references.remove(name, value)
        self._record(kinds.REFERENCES_REMOVED, call, [name])
        return HttpAnswer()

    def _record(self, kind: str, call: Call, names: list[str]) -> None:
        digest = hashlib.sha256(call.body or json.dumps(dict(call.request.query), sort_keys=True).encode()).hexdigest()
        members = {"names": sorted(set(names))[:_NAMES], "count": len(names), "request": digest}
        self.trail.change(kind, call.administrator, members)
