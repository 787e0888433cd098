"""A request and its answer as the KBS's paths see them: without aiohttp, without a socket."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from enclave_cc.errors import PeerError, UsageError
from enclave_cc.record import field, record

JSON, BYTES, XML, TEXT = "application/json", "application/octet-stream", "text/xml", "text/plain"


@record
class HttpRequest:
    """What the HTTP layer read. `path` is raw: no percent-decoding, no dot removal. `certificate`: TLS has verified one
    of the client. `id` is ours."""

    method: str
    path: str
    query: Mapping[str, str]
    cookie: str | None
    bearer: str | None
    body: bytes
    certificate: bool = False
    id: str = ""
    page: str | None = None  # the cookie of the owner's page


@record
class HttpAnswer:
    status: int = 200
    body: bytes = b""
    content_type: str = JSON
    headers: Mapping[str, str] = field(default_factory=dict)


class PathUnknown(UsageError):
    """No such path, or not with this method: upstream's `InvalidRequestPath` and `PluginNotFound`."""

    def __init__(self, variant: str, what: str, *, status: int = 404) -> None:
        super().__init__("not-found", what, "See the KBS's API for its paths.")
        self.variant = variant
        self.status = status


def take_number(query: Mapping[str, str], name: str, *, low: int, high: int, default: int | None = None) -> int | None:
    """Member `name` of a query as a number from `low` to `high`. Raises `PeerError("malformed")`."""
    text = query.get(name)
    if text is None:
        return default
    # Not more digits than `high` has: leading zeros are endless, and not for `int`.
    if not text.isascii() or not text.isdecimal() or len(text) > len(str(high)) or not low <= int(text) <= high:
        raise PeerError("malformed", f"the query's {name} is not a number from {low} to {high}")
    return int(text)


def json_answer(value: object) -> HttpAnswer:
    return HttpAnswer(body=json.dumps(value).encode())


def items_answer(rows: list[dict[str, Any]]) -> HttpAnswer:
    """A listing: `{"items": [...]}`."""
    return json_answer({"items": rows})
