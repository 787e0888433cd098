"""The admin API as the page uses it: the same handlers, scopes and audit entries, called without a socket."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from enclave_cc.errors import PeerError
from enclave_cc.owner.kbs.admin import Administrator
from enclave_cc.owner.kbs.audit_paths import LINES
from enclave_cc.owner.kbs.http import JSON, HttpRequest
from enclave_cc.owner.kbs.routing import Call, Table
from enclave_cc.record import record
from enclave_cc.wire.rcar import messages


@record
class AdminApi:
    """Requests of one administrator, who has a page session. `find_table` gives the KBS's routes."""

    find_table: Callable[[], Table]
    administrator: Administrator

    def covers(self, path: str, method: str = "GET") -> bool:
        """Whether the role covers a path below `/kbs/v0/`."""
        return self.administrator.scope.covers(method, f"{messages.PREFIX}/{path}")

    def get(self, path: str, **query: str) -> Any:
        """The JSON, or the list of lines of JSON, of a path below `/kbs/v0/`.

        Raises what the handler raises, `PeerError("forbidden")` beyond the role."""
        return self._call("GET", path, query, b"")

    def find(self, path: str, **query: str) -> Any:
        """As `get`; None beyond the role."""
        return self.get(path, **query) if self.covers(path) else None

    def post(self, path: str, value: object) -> Any:
        return self._call("POST", path, {}, json.dumps(value).encode())

    def _call(self, method: str, path: str, query: Mapping[str, str], body: bytes) -> Any:
        whole = f"{messages.PREFIX}/{path}"
        if not self.administrator.scope.covers(method, whole):
            raise PeerError("forbidden", "the role of this session does not cover this")
        found = self.find_table().find(method, whole)
        if found is None:
            raise PeerError("malformed", "there is nothing at this path")
        request = HttpRequest(method, whole, query, None, None, body)
        answer = found.route.handler(Call(request, found.parameters, self.administrator))
        if answer.content_type == LINES:
            return [json.loads(line) for line in answer.body.splitlines()]
        return json.loads(answer.body) if answer.content_type == JSON and answer.body else None
