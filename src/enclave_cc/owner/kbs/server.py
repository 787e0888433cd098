"""HTTPS around `Routes`: aiohttp, worker threads, limits against slow and large clients, an orderly end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import ssl
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web

from enclave_cc.errors import EnvironmentFault, PeerError, UsageError
from enclave_cc.owner.kbs.http import HttpAnswer, HttpRequest
from enclave_cc.owner.kbs.problems import problem_answer
from enclave_cc.owner.kbs.routes import Routes
from enclave_cc.record import record
from enclave_cc.wire.rcar import messages

HANDSHAKE_SECONDS = 10.0
SHUTDOWN_SECONDS = 10.0
MAX_CONNECTIONS = 2048
# Quote verification, signatures and SQLite release the GIL; more threads than that only wait for each other.
_WORKERS = min(32, (os.cpu_count() or 1) + 2)


@record
class Limits:
    """`request_deadline`: seconds for a request to come in whole, and for a connection to stay idle."""

    request_deadline: float = 30.0
    body_limit: int = 2 * 1024 * 1024


@dataclass
class KbsServer:
    """One listening server. `start`, then `url`; `stop` lets running requests end."""

    routes: Routes
    limits: Limits
    context: ssl.SSLContext
    url: str = ""
    _pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(_WORKERS, "kbs"))
    _quiet_since: dict[Any, float] = field(default_factory=dict)
    _running: int = 0
    _stopping: bool = False

    async def start(self, host: str, port: int) -> None:
        """Raises `EnvironmentFault("environment")` when the address is taken or not ours."""
        app = web.Application(client_max_size=self.limits.body_limit)
        app.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(
            app,
            access_log=None,
            handle_signals=False,
            keepalive_timeout=self.limits.request_deadline,
            shutdown_timeout=SHUTDOWN_SECONDS,
        )
        await self._runner.setup()
        loop = asyncio.get_running_loop()
        try:
            self._server = await loop.create_server(
                self._make_connection, host, port, ssl=self.context, backlog=512, ssl_handshake_timeout=HANDSHAKE_SECONDS
            )
        except OSError as error:
            await self._runner.cleanup()
            number = error.errno or 0  # asyncio's own words repeat the address; name resolution's numbers are negative
            raise EnvironmentFault(
                "environment",
                f"cannot listen on {host}:{port}: {os.strerror(number) if number > 0 else error.strerror}",
                "Choose another address with --listen.",
            ) from error
        await loop.run_in_executor(self._pool, self.routes.broker.warm_up)
        bound = self._server.sockets[0].getsockname()
        shown = f"[{bound[0]}]" if ":" in bound[0] else bound[0]
        self.url = f"https://{shown}:{bound[1]}"
        self._sweeper = loop.create_task(self._sweep())

    async def stop(self) -> None:
        """Takes no new connection, lets running requests end, closes.

        aiohttp's own shutdown stops reading at once, which would cut off a body that is still coming in.
        """
        self._server.close()
        self._stopping = True
        end = time.monotonic() + SHUTDOWN_SECONDS
        while self._running and time.monotonic() < end:
            await asyncio.sleep(0.02)
        self._sweeper.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._sweeper
        await self._runner.cleanup()
        self._pool.shutdown()

    async def _handle(self, request: web.Request) -> web.Response:
        self._quiet_since.pop(request.protocol, None)
        self._running += 1
        try:
            answer = await self._answer(request)
        finally:
            self._running -= 1
            # From here on the connection is idle again; also while a slow reader takes its answer.
            self._quiet_since[request.protocol] = time.monotonic()
        headers = {"Content-Type": answer.content_type, **answer.headers, **_HEADERS}
        if self._stopping:
            headers["Connection"] = "close"
        return web.Response(status=answer.status, body=answer.body, headers=headers)

    async def _answer(self, request: web.Request) -> HttpAnswer:
        try:
            async with asyncio.timeout(self.limits.request_deadline):
                body = await request.read()
        except web.HTTPRequestEntityTooLarge:
            error = PeerError("too-large", f"a body has at most {self.limits.body_limit} bytes")
            return problem_answer(error, self.routes.log, request.rel_url.raw_path)
        except TimeoutError:
            answer = problem_answer(PeerError("deadline", "the body did not come in time"), self.routes.log, "")
            return HttpAnswer(408, answer.body, headers={"Connection": "close"})
        scheme, _, credential = request.headers.get("Authorization", "").partition(" ")
        read = HttpRequest(
            method=request.method,
            path=request.rel_url.raw_path,
            query=dict(request.rel_url.query),
            cookie=request.cookies.get(messages.COOKIE),
            bearer=credential.strip() if scheme.lower() == "bearer" else None,
            body=body,
            certificate=_shows_certificate(request),
        )
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, self.routes.answer, read)
        except Exception as error:  # noqa: BLE001 (one request's bug must not take the others with it)
            # The type alone: a message may quote what a client sent.
            self.routes.log.write("bug", {"error": type(error).__name__, "where": _place(error)})
            return HttpAnswer(500, messages.Problem("PluginInternalError", "the KBS failed", "internal").encode())

    def _make_connection(self) -> asyncio.Protocol:
        protocol = self._runner.server()  # type: ignore[misc]  # set by `setup`
        self._quiet_since[protocol] = time.monotonic()
        return protocol

    async def _sweep(self) -> None:
        """Ends connections that send no whole request head, or do not take their answer, for too long.

        aiohttp bounds the wait between two requests only. The oldest quiet ones also go when there are too many.
        """
        while True:
            await asyncio.sleep(min(1.0, self.limits.request_deadline / 4))
            alive = set(self._runner.server.connections) if self._runner.server else set()
            now = time.monotonic()
            for protocol, since in list(self._quiet_since.items()):
                waiting = now - since
                if protocol not in alive and waiting > HANDSHAKE_SECONDS + 1:
                    del self._quiet_since[protocol]
                elif protocol in alive and (waiting > self.limits.request_deadline or len(alive) > MAX_CONNECTIONS):
                    alive.discard(protocol)
                    del self._quiet_since[protocol]
                    if protocol.transport is not None:
                        protocol.transport.abort()


_HEADERS = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}


def _shows_certificate(request: web.Request) -> bool:
    transport = request.transport
    # What TLS did not verify, it does not give.
    return transport is not None and bool(transport.get_extra_info("peercert"))


def _place(error: BaseException) -> str:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace is not None else "?"


def make_tls_context(certificate: str, key: str, *, client_ca: Path | None = None) -> ssl.SSLContext:
    """TLS 1.2 and 1.3 with one certificate and key (paths).

    With `client_ca`, a client may show a certificate, which must then be by one of these authorities. Attesters have
    none, so that nobody is asked to show one here; admin paths do. Raises `UsageError("bad-config")`.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(certificate, key)
        if client_ca is not None:
            context.load_verify_locations(client_ca)
            context.verify_mode = ssl.CERT_OPTIONAL
    except OSError as error:  # SSLError is one
        raise UsageError("bad-config", f"{client_ca or certificate}: not a PEM certificate that TLS can use") from error
    return context


async def serve(server: KbsServer, host: str, port: int, ready: Callable[[str], None]) -> None:
    """Serves until SIGTERM or SIGINT; `ready` gets the URL once connections are taken."""
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    await server.start(host, port)
    roots = [{"name": root.name, "simulated": root.simulated} for root in server.routes.roots.list_roots()]
    server.routes.log.write("serving", {"url": server.url, "roots": roots})
    try:
        ready(server.url)
        await stopping.wait()
    finally:
        await server.stop()
        sys.stderr.flush()
