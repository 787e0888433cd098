"""HTTPS around `Routes`: aiohttp, worker threads, limits against slow and large clients, an orderly end."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from aiohttp import ClientPayloadError, web

from enclave_cc.errors import EnclaveCcError, PeerError
from enclave_cc.owner.kbs.admission import Admission, TooMany
from enclave_cc.owner.kbs.connections import Server, count_connections, raise_descriptor_limit
from enclave_cc.owner.kbs.http import HttpAnswer, HttpRequest
from enclave_cc.owner.kbs.limits import Limits
from enclave_cc.owner.kbs.metrics_listener import serve_metrics
from enclave_cc.owner.kbs.problems import problem_answer
from enclave_cc.owner.kbs.rate_limits import name_client
from enclave_cc.owner.kbs.request_ids import CURRENT, HEADER, new_request_id
from enclave_cc.owner.kbs.routes import Routes
from enclave_cc.owner.kbs.routing import ADMIN, Match
from enclave_cc.owner.kbs.workers import BACKLOG, explain_listen
from enclave_cc.owner.page.sessions import COOKIE as PAGE_COOKIE
from enclave_cc.record import replace
from enclave_cc.wire.rcar import messages

HANDSHAKE_SECONDS = 10.0
# What is left at the end of `end_deadline` is cut off.
SHUTDOWN_SECONDS = 1.0
# A worker that takes few connections at once leaves the others to its siblings.
_ACCEPT_AT_ONCE = 4
# More than can compute: most of them wait for the disk, and those that wait at the same time share one commit.
_WORKERS = 16


@dataclass
class KbsServer:
    """One listening server. `start`, then `url`; `stop` lets running requests end."""

    routes: Routes
    limits: Limits
    context: ssl.SSLContext
    url: str = ""
    metrics_listen: tuple[str, int] | None = None
    # Handshakes need no credentials: they wait for each other, and nobody else for them.
    _handshakes: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(_WORKERS, "handshake"))
    _service: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(_WORKERS, "kbs"))
    _quiet_since: dict[Any, float] = field(default_factory=dict)
    _unasked: set[Any] = field(default_factory=set)  # connections that sent no request yet, perhaps in their handshake
    _running: int = 0
    _stopping: bool = False
    _metrics_server: asyncio.Server | None = None

    def __post_init__(self) -> None:
        self._admission = Admission(self.limits.rates, self.routes.metrics)

    async def start(self, host: str, port: int, listener: socket.socket | None = None) -> None:
        """Listens, on `listener` if there is one. Raises `EnvironmentFault("environment")` when the address is taken or
        not ours."""
        raise_descriptor_limit()
        connections = Server(self._handle, self.routes.metrics, keepalive_timeout=self.limits.request_deadline)
        self._runner = web.ServerRunner(connections, shutdown_timeout=SHUTDOWN_SECONDS)
        await self._runner.setup()
        loop = asyncio.get_running_loop()
        try:
            if listener is None:
                self._server = await loop.create_server(
                    self._make_connection, host, port, ssl=self.context, backlog=BACKLOG, ssl_handshake_timeout=HANDSHAKE_SECONDS
                )
            else:
                await self._warm_up()
                self._server = await loop.create_server(
                    self._make_connection,
                    sock=listener,
                    ssl=self.context,
                    backlog=_ACCEPT_AT_ONCE,
                    ssl_handshake_timeout=HANDSHAKE_SECONDS,
                )
                listener.listen(BACKLOG)  # asyncio has one number for both
        except OSError as error:
            await self._runner.cleanup()
            raise explain_listen(host, port, error) from error
        if listener is None:
            await self._warm_up()
        if self.metrics_listen is not None:
            self._metrics_server = await serve_metrics(self.routes.metrics, *self.metrics_listen)
        bound = self._server.sockets[0].getsockname()
        shown = f"[{bound[0]}]" if ":" in bound[0] else bound[0]
        self.url = f"https://{shown}:{bound[1]}"
        self._sweeper = loop.create_task(self._sweep())

    async def _warm_up(self) -> None:
        for pool in (self._handshakes, self._service):
            await asyncio.get_running_loop().run_in_executor(pool, self.routes.broker.warm_up)

    async def stop(self, hurry: asyncio.Event | None = None) -> None:
        """Ends in order: no client loses a request that was on its way.

        1. `/readyz` says no, for `end_delay` with everything else as before.
        2. New connections are refused; every answer asks its client to use another one.
        3. Connections are closed after such an answer, or when they have been idle for `end_idle`.

        `hurry` skips the waiting for idle ones. aiohttp's own shutdown would cut off a body that is still coming in, and
        a request that meets the closing of its connection.
        """
        hurry = hurry or asyncio.Event()
        # 1
        self.routes.readiness.draining = True
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(hurry.wait(), self.limits.end_delay)
        # 2
        self._server.close()
        self._stopping = True
        # 3
        end = time.monotonic() + self.limits.end_deadline
        while (self._running or (self._close_idle() and not hurry.is_set())) and time.monotonic() < end:
            await asyncio.sleep(0.02)
        self._sweeper.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._sweeper
        if self._metrics_server is not None:
            self._metrics_server.close()
        await self._runner.cleanup()
        self._handshakes.shutdown()
        self._service.shutdown()

    def _close_idle(self) -> bool:
        """Closes connections that were idle long enough; whether any is left that was not."""
        alive = set(self._runner.server.connections) if self._runner.server else set()
        now = time.monotonic()
        left = False
        for protocol, since in list(self._quiet_since.items()):
            if protocol not in alive and protocol not in self._unasked:
                continue  # ended, and not swept yet
            if now - since <= self.limits.end_idle:
                left = True
            elif protocol.transport is not None:
                protocol.transport.close()
        return left

    async def _handle(self, request: web.BaseRequest) -> web.Response:
        self._quiet_since.pop(request.protocol, None)
        self._unasked.discard(request.protocol)
        self._running += 1
        start, metrics = time.perf_counter(), self.routes.metrics
        metrics.active.change(1)
        try:
            head = _read_head(request)
            found, client = self.routes.find(head), name_client(request.remote or "")
            answer = await self._answer(request, head, found, client)
        finally:
            self._running -= 1
            metrics.active.change(-1)
            # From here on the connection is idle again; also while a slow reader takes its answer.
            self._quiet_since[request.protocol] = time.monotonic()
        self._admission.note(client, answer.status)
        self._count(head, found, client, answer, time.perf_counter() - start)
        headers = {"Content-Type": answer.content_type, **answer.headers, **_HEADERS, HEADER: head.id}
        response = web.Response(status=answer.status, body=answer.body, headers=headers)
        if self._stopping:
            response.force_close()
        return response

    def _count(self, head: HttpRequest, found: Match | None, client: str, answer: HttpAnswer, seconds: float) -> None:
        metrics, route = self.routes.metrics, "other" if found is None else found.route.path
        metrics.requests.add(route, str(answer.status))
        metrics.duration.observe(seconds, route)
        metrics.response_size.observe(len(answer.body))
        if self.limits.log_requests:
            # The route's template, not the path: what follows it may be a name that is nobody else's affair.
            members = {"method": head.method[:16], "route": route, "status": answer.status, "client": client}
            self.routes.log.write("request", {**members, "ms": round(seconds * 1000, 2), "request": head.id})

    async def _answer(self, request: web.BaseRequest, head: HttpRequest, found: Match | None, client: str) -> HttpAnswer:
        loop = asyncio.get_running_loop()
        try:
            if head.path not in _HEALTH:  # a balancer must not hear of a client's misbehaviour
                self._admission.admit(client)
            if head.path == "/healthz":  # that the process lives is said even when every thread waits for the database
                return self.routes.answer(head, found)
            if found is None:
                return await loop.run_in_executor(self._service, self.routes.answer, head, None)
            if found.route.access == ADMIN:  # before the body is read: nobody else's takes room
                administrator = await loop.run_in_executor(self._service, self.routes.authorize, head)
                self._admission.admit_administrator(administrator)
                read = replace(head, body=await self._read_body(request, lambda _: None))
                return await loop.run_in_executor(self._service, self.routes.answer, read, found, administrator)
            with self._admission.buffer(client) as take:
                read = replace(head, body=await self._read_body(request, take)) if request.body_exists else head
                if head.path not in _HANDSHAKE:
                    return await loop.run_in_executor(self._service, self.routes.answer, read, found)
                with self._admission.queue(client):
                    return await loop.run_in_executor(self._handshakes, self.routes.answer, read, found)
        except EnclaveCcError as error:
            return self._refuse(error, head)
        except Exception as error:  # noqa: BLE001 (one request's bug must not take the others with it)
            # The type alone: a message may quote what a client sent.
            self.routes.log.write("bug", {"error": type(error).__name__, "where": _place(error), "request": head.id})
            return HttpAnswer(500, messages.Problem("PluginInternalError", "the KBS failed", "internal").encode())

    async def _read_body(self, request: web.BaseRequest, take: Callable[[int], None]) -> bytes:
        """The whole body; `take` is told of each piece, and may refuse it.

        Raises `PeerError("too-large" | "deadline" | "malformed")`.
        """
        if (request.content_length or 0) > self.limits.body_limit:
            raise PeerError("too-large", f"a body has at most {self.limits.body_limit} bytes")
        if request.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise PeerError("malformed", "a body is sent as it is, not compressed")
        limit = self.limits.body_limit
        too_large = PeerError("too-large", f"a body has at most {limit} bytes")
        pieces, size = [], 0
        try:
            async with asyncio.timeout(self.limits.request_deadline):
                if request.headers.get("Expect", "").lower() == "100-continue":
                    await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
                    request.writer.output_size = 0
                while piece := await request.content.readany():
                    size += len(piece)
                    if size > limit:
                        raise too_large
                    take(len(piece))
                    pieces.append(piece)
        except TimeoutError as error:
            raise PeerError("deadline", "the body did not come in time") from error
        except (web.RequestPayloadError, ClientPayloadError) as error:
            raise PeerError("malformed", "the body is not framed as HTTP has it") from error
        except OSError as error:  # gone: nobody reads what this is answered
            raise PeerError("malformed", "the client went away within its body") from error
        self.routes.metrics.request_size.observe(size)
        return b"".join(pieces)

    def _refuse(self, error: EnclaveCcError, head: HttpRequest) -> HttpAnswer:
        token = CURRENT.set(head.id)
        try:
            answer = problem_answer(error, self.routes.log, head.path)
        finally:
            CURRENT.reset(token)
        if isinstance(error, TooMany):
            return replace(answer, headers={"Retry-After": str(error.retry_after)})
        if error.code == "deadline":
            return replace(answer, status=408, headers={"Connection": "close"})
        return answer

    def _make_connection(self) -> asyncio.Protocol:
        protocol = self._runner.server()  # type: ignore[misc]  # set by `setup`
        self._quiet_since[protocol] = time.monotonic()
        self._unasked.add(protocol)
        return protocol

    async def _sweep(self) -> None:
        """Ends connections that send no whole request head, or do not take their answer, for too long.

        aiohttp bounds the wait between two requests only. The oldest quiet ones also go when there are too many: a process
        without descriptors accepts nobody, and reads no file.
        """
        while True:
            await asyncio.sleep(min(1.0, self.limits.request_deadline / 4))
            alive = set(self._runner.server.connections) if self._runner.server else set()
            now = time.monotonic()
            most = count_connections()
            for protocol, since in list(self._quiet_since.items()):
                waiting = now - since
                if protocol not in alive and waiting > HANDSHAKE_SECONDS + 1:
                    del self._quiet_since[protocol]
                    self._unasked.discard(protocol)
                elif protocol in alive and (waiting > self.limits.request_deadline or len(alive) > most):
                    alive.discard(protocol)
                    self._unasked.discard(protocol)
                    del self._quiet_since[protocol]
                    if protocol.transport is not None:
                        protocol.transport.abort()


_HEALTH = frozenset(("/healthz", "/readyz"))
_HANDSHAKE = frozenset((f"{messages.PREFIX}/auth", f"{messages.PREFIX}/attest"))
_HEADERS = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}


def _read_head(request: web.BaseRequest) -> HttpRequest:
    scheme, _, credential = request.headers.get("Authorization", "").partition(" ")
    return HttpRequest(
        method=request.method,
        path=request.rel_url.raw_path,
        query=dict(request.rel_url.query),
        cookie=request.cookies.get(messages.COOKIE),
        bearer=credential.strip() if scheme.lower() == "bearer" else None,
        body=b"",
        certificate=_shows_certificate(request),
        id=new_request_id(),
        page=request.cookies.get(PAGE_COOKIE),
    )


def _shows_certificate(request: web.BaseRequest) -> bool:
    transport = request.transport
    # What TLS did not verify, it does not give.
    return transport is not None and bool(transport.get_extra_info("peercert"))


def _place(error: BaseException) -> str:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace is not None else "?"
