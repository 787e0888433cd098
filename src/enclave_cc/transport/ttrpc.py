"""ttrpc over unix sockets and TCP: the calling side (`transport.ttrpc_server` is the other).

    client = Client("/run/agent.sock", deadline=5.0)
    answer = client.call("pkg.Service", "Method", request, timeout=30.0)

A client keeps idle connections and uses one per call in flight, so that any number of threads may call and a slow call
delays no other. Calls are unary. An error of the handler arrives as a `PeerError` with its code. Deadlines are seconds;
None waits for ever.
"""

from __future__ import annotations

import select
import socket
import threading
import time
from collections.abc import Sequence

from enclave_cc.errors import EnvironmentFault, PeerError, UsageError
from enclave_cc.wire.ttrpc.connection import Connection, ResponseReceived, Role, StreamFailed

Address = str | tuple[str, int]
# poll(2) counts milliseconds in an int: no single wait can be longer than 24 days.
LONGEST_WAIT = 20 * 86_400.0
_CHUNK = 1 << 16
_KEPT = 4  # idle connections


class Client:
    """Calls over `address`: a unix socket's path or (host, port).

    `deadline` bounds connecting, and a call for which no timeout is given; None there waits as long as the call
    takes. Raises `PeerError` with the code that the peer sent, `PeerError("deadline")`, and
    `EnvironmentFault(unreachable)` when the peer is not there or goes away.
    """

    def __init__(self, address: Address, deadline: float | None, *, unreachable: str = "agent-unreachable") -> None:
        self._address = address
        self._deadline = deadline
        self._unreachable = unreachable
        self._lock = threading.Lock()
        self._idle: list[_Exchange] = []
        self._closed = False

    def call(
        self,
        service: str,
        method: str,
        request: bytes,
        timeout: float | None = None,
        *,
        metadata: Sequence[tuple[str, str]] = (),
    ) -> bytes:
        """One unary call; the response's payload. `timeout` also tells the server how long we will wait."""
        limit = self._deadline if timeout is None else timeout
        ends = None if limit is None else time.monotonic() + limit
        exchange = self._take(ends)
        try:
            answer = exchange.call(service, method, request, metadata, ends)
        except _Gone as gone:
            # Not tried again: the server may have carried it out.
            exchange.close()
            raise EnvironmentFault(self._unreachable, f"{name_of(self._address)}: {gone}") from gone
        except BaseException:
            exchange.close()
            raise
        self._keep(exchange)
        if isinstance(answer, PeerError):
            raise answer
        return answer

    def close(self) -> None:
        with self._lock:
            self._closed, idle, self._idle = True, self._idle, []
        for exchange in idle:
            exchange.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _take(self, ends: float | None) -> _Exchange:
        """A kept connection that the server has not closed meanwhile, or a new one."""
        with self._lock:
            if self._closed:
                raise UsageError("wrong-state", "this ttrpc client is closed")
            while self._idle:
                exchange = self._idle.pop()
                if exchange.is_silent():
                    return exchange
                exchange.close()
        try:
            return _Exchange(self._address, ends)
        except _Gone as gone:
            raise EnvironmentFault(self._unreachable, f"{name_of(self._address)}: {gone}") from gone

    def _keep(self, exchange: _Exchange) -> None:
        with self._lock:
            if not self._closed and len(self._idle) < _KEPT:
                self._idle.append(exchange)
                return
        exchange.close()


class _Gone(Exception):
    """The connection cannot be made or broke; the caller names the error."""


class _Exchange:
    """One connection of a client, one call at a time."""

    def __init__(self, address: Address, ends: float | None) -> None:
        self._connection = Connection(Role.CLIENT)
        family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
        self._socket = socket.socket(family, socket.SOCK_STREAM)
        try:
            self._socket.settimeout(_left(ends))
            self._socket.connect(address)
            if family == socket.AF_INET:
                self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except TimeoutError as error:
            self._socket.close()
            raise _too_late(f"connecting to {name_of(address)}") from error
        except OSError as error:
            self._socket.close()
            raise _Gone(error.strerror or str(error)) from error
        except BaseException:
            self._socket.close()
            raise

    def call(
        self, service: str, method: str, request: bytes, metadata: Sequence[tuple[str, str]], ends: float | None
    ) -> bytes | PeerError:
        """The payload, or the error that the peer answered: the connection is sound in both cases."""
        left = _left(ends)
        nanos = 0 if left is None else max(1, int(left * 1e9))
        stream_id, encoded = self._connection.send_request(service, method, request, timeout_nano=nanos, metadata=metadata)
        try:
            self._socket.settimeout(left)
            self._socket.sendall(encoded)
            while True:
                self._socket.settimeout(_left(ends))
                data = self._socket.recv(_CHUNK)
                if not data:
                    raise _Gone("the peer closed the connection")
                for event in self._connection.receive(data):
                    if isinstance(event, ResponseReceived) and event.stream_id == stream_id:
                        return event.payload if event.error is None else event.error
                    if isinstance(event, StreamFailed) and event.stream_id == stream_id:
                        return event.error
        except TimeoutError as error:
            raise _too_late(f"{service}/{method}") from error
        except OSError as error:
            raise _Gone(error.strerror or str(error)) from error

    def is_silent(self) -> bool:
        """Whether nothing came on the idle connection: neither its end nor bytes that nobody asked for."""
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        return not poll.poll(0)

    def close(self) -> None:
        self._socket.close()


def _left(ends: float | None) -> float | None:
    """Seconds until `ends`. Raises `PeerError("deadline")` when there are none."""
    if ends is None:
        return None
    left = ends - time.monotonic()
    if left <= 0:
        raise _too_late("the call")
    return min(left, LONGEST_WAIT)


def _too_late(what: str) -> PeerError:
    return PeerError("deadline", f"{what} did not end in time")


def name_of(address: Address) -> str:
    """An address for messages."""
    return address if isinstance(address, str) else f"{address[0]}:{address[1]}"
