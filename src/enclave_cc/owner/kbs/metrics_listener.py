"""`/metrics` at an address of its own: plain HTTP, for a scraper on a network that clients do not reach."""

from __future__ import annotations

import asyncio
import contextlib

from enclave_cc.owner.kbs.metrics import CONTENT_TYPE, Metrics
from enclave_cc.owner.kbs.workers import explain_listen

_DEADLINE = 10.0
_HEAD_LIMIT = 8192


async def serve_metrics(metrics: Metrics, host: str, port: int) -> asyncio.Server:
    """Listens; processes of one KBS may share the address, since each knows all counts.

    Raises `EnvironmentFault("environment")`.
    """

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with contextlib.suppress(OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
                async with asyncio.timeout(_DEADLINE):
                    head = await reader.readuntil(b"\r\n\r\n")
                    writer.write(_answer(head.split(b"\r\n", 1)[0], metrics))
                    await writer.drain()
        finally:
            writer.close()

    try:
        return await asyncio.start_server(handle, host, port, limit=_HEAD_LIMIT, reuse_port=True)
    except OSError as error:
        raise explain_listen(host, port, error) from error


def _answer(line: bytes, metrics: Metrics) -> bytes:
    words = line.split(b" ")
    found = len(words) == 3 and words[0] in (b"GET", b"HEAD") and words[1].partition(b"?")[0] == b"/metrics"
    body = metrics.render().encode() if found else b"there is /metrics only\n"
    status = b"200 OK" if found else b"404 Not Found"
    kind = CONTENT_TYPE if found else "text/plain"
    head = b"HTTP/1.1 %b\r\nContent-Type: %b\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % (
        status,
        kind.encode(),
        len(body),
    )
    return head + (b"" if words[0] == b"HEAD" else body)
