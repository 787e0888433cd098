"""Administrators' paths: resources."""

from __future__ import annotations

from enclave_cc.crypto.secret import Secret
from enclave_cc.owner.audit import kinds
from enclave_cc.owner.kbs.attester_paths import RESOURCE, resource_path
from enclave_cc.owner.kbs.audit_trail import AuditTrail
from enclave_cc.owner.kbs.http import BYTES, XML, HttpAnswer, items_answer
from enclave_cc.owner.kbs.routing import Call, Route
from enclave_cc.owner.resources.store import ResourceStore
from enclave_cc.record import record
from enclave_cc.wire.rcar import messages

_ADMIN = f"{messages.PREFIX}/admin/resources"


@record
class ResourcePaths:
    """Writing at upstream's path, reading and listing at ours."""

    resources: ResourceStore
    trail: AuditTrail

    def routes(self) -> tuple[Route, ...]:
        return (
            Route("POST", RESOURCE, self._put),
            Route("DELETE", RESOURCE, self._delete),
            Route("GET", _ADMIN, self._list),
            Route("GET", f"{_ADMIN}/{{repository}}/{{type}}/{{tag}}", self._read),
        )

    def _put(self, call: Call) -> HttpAnswer:
        path = resource_path(call)
        version = self.resources.put(path, Secret(call.body))
        members = {"version": version, "size": len(call.body)}
        self.trail.change(kinds.RESOURCE_SET, call.administrator, members, subject=str(path))
        return HttpAnswer(content_type=XML)  # upstream's odd type, which its clients ignore

    def _delete(self, call: Call) -> HttpAnswer:
        path = resource_path(call)
        self.resources.delete(path)
        self.trail.change(kinds.RESOURCE_REMOVED, call.administrator, {}, subject=str(path))
        return HttpAnswer(content_type=XML)

    def _list(self, call: Call) -> HttpAnswer:
        found = self.resources.list(call.request.query.get("prefix", ""))
        scope = call.scope
        if not scope.covers_all_resources:
            found = [each for each in found if scope.covers_resource(str(each.path))]
        return items_answer([{"path": str(r.path), "version": r.version, "created": r.created, "size": r.size} for r in found])

    def _read(self, call: Call) -> HttpAnswer:
        resource = self.resources.get(resource_path(call))
        members = {"version": resource.version}
        self.trail.change(kinds.RESOURCE_READ, call.administrator, members, subject=str(resource.path))
        return HttpAnswer(body=resource.value.reveal(), content_type=BYTES)
