"""HTTP/1.1 connections that are kept and shared by threads, each wait under a deadline.

`http.client` bounds single reads only, so that a peer which sends one byte at a time could hold us for ever; here a
request's answer is read against one moment in time, which streaming readers move forward as they make progress.
"""

from __future__ import annotations

import functools
import http.client
import io
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any

from enclave_cc.errors import EnclaveCcError, EnvironmentFault, PeerError, foreign
from enclave_cc.record import record

_IDLE_LIMIT = 4  # connections kept per endpoint; as many as layers are pulled at once, and one
_CHUNK = 256 << 10
_GONE = (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError, ssl.SSLEOFError, ssl.SSLZeroReturnError)


@record
class Endpoint:
    """Where to connect to; `secure` means TLS."""

    host: str
    port: int
    secure: bool

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


@record
class Body:
    """A request body of `size` bytes that can be opened again when the request must be repeated."""

    open: Callable[[], Iterable[bytes]]
    size: int

    @classmethod
    def of(cls, data: bytes) -> Body:
        return cls(lambda: (data,), len(data))


class _Timer:
    """The moment until which the current wait may last (monotonic seconds)."""

    def __init__(self) -> None:
        self.until = 0.0

    def remaining(self) -> float:
        left = self.until - time.monotonic()
        if left <= 0:
            raise TimeoutError("the deadline is over")
        return left


class _TimedReader(io.RawIOBase):
    def __init__(self, connection: socket.socket, timer: _Timer) -> None:
        self._connection = connection
        self._raw = connection.makefile("rb", buffering=0)
        self._timer = timer

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        self._connection.settimeout(self._timer.remaining())
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()


class _TimedSocket:
    """The part of a socket that `HTTPResponse` uses."""

    def __init__(self, connection: socket.socket, timer: _Timer) -> None:
        self._connection = connection
        self._timer = timer

    def makefile(self, _mode: str) -> io.BufferedReader:
        return io.BufferedReader(_TimedReader(self._connection, self._timer), _CHUNK)


def _make_response(timer: _Timer, connection: socket.socket, **options: Any) -> http.client.HTTPResponse:
    return http.client.HTTPResponse(_TimedSocket(connection, timer), **options)  # type: ignore[arg-type]


class Response(AbstractContextManager["Response"]):
    """An answer whose body is still to be read; closing it gives the connection back, or drops it."""

    def __init__(self, pool: ConnectionPool, kept: _Kept, raw: http.client.HTTPResponse) -> None:
        self._pool, self._kept, self._raw = pool, kept, raw
        self.status = raw.status

    def header(self, name: str) -> str | None:
        return self._raw.getheader(name)

    def read(self, limit: int) -> bytes:
        """The whole body. Raises `PeerError("too-large")` above `limit` bytes, `EnvironmentFault` if it breaks off."""
        with self._pool.translate(self._kept.endpoint):
            data = self._raw.read(limit + 1)
        if len(data) > limit:
            raise PeerError("too-large", f"{self._kept.endpoint} answered with more than {limit} bytes")
        if self._raw.length:
            raise EnvironmentFault(self._pool.unreachable, f"{self._kept.endpoint} broke off its answer")
        return data

    def skim(self, limit: int) -> bytes:
        """At most `limit` bytes of a body that matters for messages only; a longer one costs the connection."""
        with self._pool.translate(self._kept.endpoint):
            return self._raw.read(limit)

    def read_chunk(self, idle: float) -> bytes:
        """The next up to 256 KiB, empty at the end or where the connection broke; waits at most `idle` seconds."""
        self._kept.timer.until = time.monotonic() + idle
        with self._pool.translate(self._kept.endpoint):
            return self._raw.read(_CHUNK)

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None) -> None:
        ended = self._raw.isclosed() and not self._raw.length  # a broken body is closed too, with bytes missing
        reusable = ended and not self._raw.will_close and not isinstance(value, EnvironmentFault)
        self._raw.close()
        self._pool.give_back(self._kept, reusable=reusable)


class _Kept:
    __slots__ = ("connection", "endpoint", "timer", "used")

    def __init__(self, endpoint: Endpoint, connection: http.client.HTTPConnection, timer: _Timer) -> None:
        self.endpoint, self.connection, self.timer = endpoint, connection, timer
        self.used = False


class ConnectionPool:
    """Connections by endpoint, for one TLS context. Safe for many threads; one connection serves one at a time.

    `unreachable` is the code raised when the peer does not answer in time, or is not who its certificate must say.
    """

    def __init__(self, context: ssl.SSLContext | None, *, unreachable: str) -> None:
        self._context = context
        self.unreachable = unreachable
        self._lock = threading.Lock()
        self._idle: dict[Endpoint, list[_Kept]] = {}
        self._closed = False

    def request(
        self, endpoint: Endpoint, method: str, path: str, headers: Mapping[str, str], body: Body | None, *, timeout: float
    ) -> Response:
        """Sends one request and reads the answer's head, within `timeout` seconds (a body: that long per block sent).

        A kept connection that the peer has closed meanwhile is replaced once. Raises `EnvironmentFault`.
        """
        with self.translate(endpoint):
            kept = self._take(endpoint)
            try:
                return self._exchange(kept, method, path, headers, body, timeout)
            except _GONE:
                kept.connection.close()
                if not kept.used:
                    raise
            except BaseException:
                kept.connection.close()
                raise
            kept = self._connect(endpoint)
            try:
                return self._exchange(kept, method, path, headers, body, timeout)
            except BaseException:
                kept.connection.close()
                raise

    def _exchange(
        self, kept: _Kept, method: str, path: str, headers: Mapping[str, str], body: Body | None, timeout: float
    ) -> Response:
        connection = kept.connection
        if connection.sock is None:
            connection.timeout = timeout
            connection.connect()  # which sets TCP_NODELAY itself
        connection.sock.settimeout(timeout)
        sent = dict(headers)
        if body is not None:
            sent["Content-Length"] = str(body.size)
        connection.request(method, path, body=body.open() if body is not None else None, headers=sent)
        kept.timer.until = time.monotonic() + timeout
        return Response(self, kept, connection.getresponse())

    def _take(self, endpoint: Endpoint) -> _Kept:
        with self._lock:
            idle = self._idle.get(endpoint)
            if idle:
                return idle.pop()
        return self._connect(endpoint)

    def _connect(self, endpoint: Endpoint) -> _Kept:
        connection: http.client.HTTPConnection
        if endpoint.secure:
            connection = http.client.HTTPSConnection(endpoint.host, endpoint.port, context=self._context)
        else:
            connection = http.client.HTTPConnection(endpoint.host, endpoint.port)
        timer = _Timer()
        connection.response_class = functools.partial(_make_response, timer)  # type: ignore[assignment]
        return _Kept(endpoint, connection, timer)

    def give_back(self, kept: _Kept, *, reusable: bool) -> None:
        """Keeps a connection whose answer was read to its end; closes any other."""
        kept.used = True
        with self._lock:
            idle = self._idle.setdefault(kept.endpoint, [])
            if reusable and not self._closed and kept.connection.sock is not None and len(idle) < _IDLE_LIMIT:
                idle.append(kept)
                return
        kept.connection.close()

    def close(self) -> None:
        """Closes every idle connection; those in use close when their answer is done with."""
        with self._lock:
            self._closed = True
            idle = [kept for group in self._idle.values() for kept in group]
            self._idle.clear()
        for kept in idle:
            kept.connection.close()

    def translate(self, endpoint: Endpoint) -> _Translation:
        """Turns what sockets, TLS and `http.client` raise into this project's errors."""
        return _Translation(endpoint, self.unreachable)


class _Translation(AbstractContextManager[None]):
    def __init__(self, endpoint: Endpoint, code: str) -> None:
        self._endpoint, self._code = endpoint, code

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None) -> None:
        if value is None or isinstance(value, EnclaveCcError):
            return
        if isinstance(value, ssl.SSLCertVerificationError):
            fix = "Give the CA that signed its certificate in the configuration, or correct the host's name."
            what = f"the certificate of {self._endpoint} is not trusted: {foreign(value.verify_message)}"
            raise EnvironmentFault(self._code, what, fix) from value
        if isinstance(value, TimeoutError):
            raise EnvironmentFault(self._code, f"{self._endpoint} did not answer in time") from value
        if isinstance(value, OSError | http.client.HTTPException | ValueError):  # ValueError: a URL that cannot be sent
            raise EnvironmentFault(self._code, f"{self._endpoint}: {foreign(value) or type(value).__name__}") from value
