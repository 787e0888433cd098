"""Administrators' paths: resources."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from enclave_cc.crypto.secret import Secret
from enclave_cc.errors import PeerError
from enclave_cc.owner.audit import kinds
from enclave_cc.owner.kbs.admin import Role
from enclave_cc.owner.kbs.admin_settings import OWNER
from enclave_cc.owner.kbs.attester_paths import RESOURCE, resource_path
from enclave_cc.owner.kbs.audit_trail import AuditTrail
from enclave_cc.owner.kbs.http import BYTES, XML, HttpAnswer, items_answer, json_answer
from enclave_cc.owner.kbs.metrics import Metrics
from enclave_cc.owner.kbs.routing import Call, Route
from enclave_cc.owner.resources.store import MAX_PAGE, PAGE, ResourceInfo, ResourceStore
from enclave_cc.record import field, record
from enclave_cc.wire.rcar import canonical, messages

_ADMIN = f"{messages.PREFIX}/admin/resources"
_ONE = f"{_ADMIN}/{{repository}}/{{type}}/{{tag}}"
VERSION_HEADER = "Resource-Version"


@record
class ResourcePaths:
    """Writing at upstream's path, reading, listing, tags and history at ours."""

    resources: ResourceStore
    trail: AuditTrail
    metrics: Metrics = field(default_factory=Metrics)

    def routes(self) -> tuple[Route, ...]:
        return (
            Route("POST", RESOURCE, self._put),
            Route("DELETE", RESOURCE, self._delete),
            Route("GET", _ADMIN, self._list),
            Route("GET", _ONE, self._read),
            Route("GET", f"{_ONE}/history", self._history),
            Route("POST", f"{_ONE}/tags", self._tag),
        )

    def _put(self, call: Call) -> HttpAnswer:
        """The body is the value; `tags`, if there, a JSON object that replaces the path's."""
        path, tags = resource_path(call), None
        if "tags" in call.request.query:
            tags = {key: value for key, value in _parse_tags(call.request.query["tags"]).items() if value is not None}
        version = self.resources.put(path, Secret(call.body), author=_author(call), tags=tags)
        members = {"version": version, "size": len(call.body)} | ({} if tags is None else {"tags": tags})
        self.trail.change(kinds.RESOURCE_SET, call.administrator, members, subject=str(path))
        self.metrics.writes.add()
        # The type is upstream's odd one, which its clients ignore.
        return HttpAnswer(content_type=XML, headers={VERSION_HEADER: str(version)})

    def _delete(self, call: Call) -> HttpAnswer:
        path = resource_path(call)
        self.resources.delete(path, author=_author(call))
        self.trail.change(kinds.RESOURCE_REMOVED, call.administrator, {}, subject=str(path))
        self.metrics.deletes.add()
        return HttpAnswer(content_type=XML)

    def _read(self, call: Call) -> HttpAnswer:
        """The latest version, or `version`."""
        version = call.request.query.get("version")
        resource = self.resources.get(resource_path(call), None if version is None else _parse_number(version, "version"))
        self.trail.change(kinds.RESOURCE_READ, call.administrator, {"version": resource.version}, subject=str(resource.path))
        headers = {VERSION_HEADER: str(resource.version)}
        return HttpAnswer(body=resource.value.reveal(), content_type=BYTES, headers=headers)

    def _history(self, call: Call) -> HttpAnswer:
        members = ("version", "created", "size", "author", "removed", "removed_by")
        found = self.resources.history(resource_path(call))
        return items_answer([{name: getattr(each, name) for name in members} for each in found])

    def _tag(self, call: Call) -> HttpAnswer:
        """The body is a JSON object of tags to set, with null for those to take off."""
        path, changes = resource_path(call), _check_tags(canonical.parse_object(call.body, "the tags"))
        info = self.resources.tag(path, changes, author=_author(call))
        members = {"version": info.version, "tags": dict(info.tags)}
        self.trail.change(kinds.RESOURCE_TAGGED, call.administrator, members, subject=str(path))
        return json_answer(_describe(info))

    def _list(self, call: Call) -> HttpAnswer:
        """One page: `prefix`, `tags` (JSON object; null for any value), `after`, `limit`."""
        query = call.request.query
        tags = _parse_tags(query["tags"]) if "tags" in query else {}
        limit, after = _parse_number(query.get("limit", str(PAGE)), "limit"), query.get("after", "")
        if not 1 <= limit <= MAX_PAGE:
            raise PeerError("malformed", f"limit is 1 to {MAX_PAGE}")
        found, following = self._collect(call.scope, query.get("prefix", ""), tags, after, limit)
        answer: dict[str, Any] = {"items": [_describe(each) for each in found]}
        return json_answer(answer if following is None else answer | {"next": following})

    def _collect(
        self, scope: Role, prefix: str, tags: Mapping[str, str | None], after: str, limit: int
    ) -> tuple[list[ResourceInfo], str | None]:
        """A page of what `scope` may see: other paths that begin alike are left out, and not named as `next` either."""
        found: list[ResourceInfo] = []
        prefixes = _narrow(prefix, scope)
        for index, each in enumerate(prefixes):
            page = self.resources.list(each, tags=tags, after=after, limit=limit - len(found))
            found += (item for item in page.items if scope.covers_resource(str(item.path)))
            following = page.next if page.next is not None and scope.covers_resource(page.next) else None
            if following is not None or (len(found) == limit and index + 1 < len(prefixes)):
                return found, following or str(found[-1].path)
            after = str(found[-1].path) if found else after
        return found, None


def _narrow(prefix: str, scope: Role) -> list[str]:
    """What of `prefix` an administrator may see: sorted prefixes of which none begins another, and single paths."""
    if scope.covers_all_resources:
        return [prefix]
    within = {max(each, prefix, key=len) for each in scope.resources if each.startswith(prefix) or prefix.startswith(each)}
    single = {each for each in within & set(scope.resources) if not each.endswith("/")}
    return sorted(each for each in within if not any(each.startswith(other) for other in within - single - {each}))


def _describe(info: ResourceInfo) -> dict[str, Any]:
    members = ("version", "created", "size", "author")
    return {"path": str(info.path), "tags": dict(info.tags), **{name: getattr(info, name) for name in members}}


def _author(call: Call) -> str:
    """Who asks, as a history shows it: the token's subject, with the provider that vouches for it unless the owner does."""
    who = call.administrator
    if who is None:
        return ""
    return who.subject if who.provider in ("", OWNER) else f"{who.subject} ({who.provider})"


def _parse_tags(text: str) -> dict[str, str | None]:
    document = canonical.parse_object(text.encode("utf-8", "surrogatepass"), "the query's tags")
    return _check_tags(document)


def _check_tags(document: Mapping[str, Any]) -> dict[str, str | None]:
    if not all(value is None or isinstance(value, str) for value in document.values()):
        raise PeerError("malformed", "the value of a tag is text, or null")
    return dict(document)


def _parse_number(text: str, name: str) -> int:
    if not text.isascii() or not text.isdecimal() or len(text) > 15:
        raise PeerError("malformed", f"{name} is not a number")
    return int(text)
