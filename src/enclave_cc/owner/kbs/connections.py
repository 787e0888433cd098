"""aiohttp's connections, with our manners: errors as Error JSON, nothing of a client in any log; and how many there may be."""

from __future__ import annotations

import logging
import resource
from typing import Any

from aiohttp import web

from enclave_cc.owner.kbs.http import JSON
from enclave_cc.owner.kbs.metrics import Metrics
from enclave_cc.wire.rcar import messages

# aiohttp would print tracebacks, which quote what a client sent; what is our own bug, `KbsServer` logs.
_SILENT = logging.Logger("enclave-cc.http")
_SILENT.addHandler(logging.NullHandler())

# An attestation token is sent as a header, and has the claims of init-data in it: some certificates, in base64 twice. All
# fields together are 1 MB, as by aiohttp's own numbers (8 kB, 128).
MAX_FIELD, MAX_FIELDS = 32 * 1024, 32

MAX_CONNECTIONS = 2048
# Of that many connections, of as many in their handshake (which nothing but its deadline ends), of all else.
_DESCRIPTORS = 2 * MAX_CONNECTIONS + 512


def count_connections() -> int:
    """How many there may be with the descriptors that this process has."""
    descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)  # Linux has no number that means "endless" here
    return min(MAX_CONNECTIONS, descriptors // 2)


def raise_descriptor_limit() -> None:
    """To what the connections need, as far as the administrator lets us: 1024 is what a shell gives."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < min(hard, _DESCRIPTORS):
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, _DESCRIPTORS), hard))


class Connection(web.RequestHandler):
    """One connection. What is no HTTP never becomes a request; here it gets its answer."""

    __slots__ = ("_metrics",)

    def __init__(self, manager: Server, metrics: Metrics, **options: Any) -> None:
        super().__init__(manager, **options)
        self._metrics = metrics

    def handle_error(
        self, request: web.BaseRequest, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> web.StreamResponse:
        self._metrics.requests.add("other", str(status))
        if request.writer.output_size > 0:
            raise ConnectionError("the answer has begun")
        code = "malformed" if status < 500 else "internal"
        problem = messages.Problem(
            "InvalidRequest" if status < 500 else "PluginInternalError", "this is not HTTP as it should be", code
        )
        answer = web.Response(status=status, body=problem.encode(), headers={"Content-Type": JSON})
        answer.force_close()
        return answer


class Server(web.Server):
    """Makes a `Connection` for each socket; no router, as `Routes` has the paths as they were sent."""

    def __init__(self, handler: Any, metrics: Metrics, **options: Any) -> None:
        # Not decompressing: 1 kB could be 1 MB, and nobody who asks for keys needs it.
        options |= {"auto_decompress": False, "max_field_size": MAX_FIELD, "max_headers": MAX_FIELDS}
        super().__init__(handler, access_log=None, logger=_SILENT, **options)
        self._metrics = metrics

    def __call__(self) -> Connection:
        return Connection(self, self._metrics, loop=self._loop, **self._kwargs)
