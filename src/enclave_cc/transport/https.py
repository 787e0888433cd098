"""HTTPS to one server: pinned identity, total deadlines, bounded bodies, kept-alive connections.

Stdlib only and without an event loop: this runs in the agent enclave, where each MiB and millisecond counts. It
follows no redirect and honours no proxy variable, since both would let the host choose another peer.
"""

from __future__ import annotations

import http.client
import re
import socket
import ssl
import threading
import time
from collections.abc import Mapping
from typing import Any, cast
from urllib.parse import urlsplit

from enclave_cc.errors import EnclaveCcError, EnvironmentFault, PeerError, UsageError, foreign
from enclave_cc.record import record

# A KBS body is 2 MiB at most; a JWE of that is a third larger.
MAX_BODY = 4 * 1024 * 1024
_IDLE_LIMIT = 4
_HOSTNAME_MISMATCH = 62  # X509_V_ERR_HOSTNAME_MISMATCH
_IP_MISMATCH = 64  # X509_V_ERR_IP_ADDRESS_MISMATCH
_GONE = (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError, ssl.SSLEOFError, ssl.SSLZeroReturnError)


@record
class Codes:
    """Codes of `errors.TABLE` for what can go wrong on the way, since a KBS and a registry have their own."""

    unreachable: str = "kbs-unreachable"
    identity: str = "kbs-identity"
    protocol: str = "kbs-protocol"


@record
class Response:
    """A whole answer. Header names are lower case, in the order they came."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes

    def header(self, name: str) -> str | None:
        """The first header of this (lower-case) name."""
        return next((value for key, value in self.headers if key == name), None)

    def cookie(self, name: str) -> str | None:
        """The value of the last `Set-Cookie` of this name."""
        prefix = f"{name}="
        values = [value for key, value in self.headers if key == "set-cookie" and value.startswith(prefix)]
        return values[-1][len(prefix) :].split(";", 1)[0].strip() if values else None


class HttpsClient:
    """Requests to one origin. Safe for many threads: each request has its connection, idle ones are kept.

    `certificate_pem` pins the server: its own certificate, or the CA that signed it. With its own certificate the host
    name need not match, because the certificate itself is the identity. Without one the system's CAs decide.
    `deadline` is the longest that one request may take as a whole, in seconds. With `keep_alive`, `close` when done.
    """

    def __init__(
        self,
        base_url: str,
        *,
        certificate_pem: str | None,
        deadline: float,
        codes: Codes | None = None,
        keep_alive: bool = True,
    ) -> None:
        parts = urlsplit(base_url)
        if parts.scheme != "https" or not parts.hostname or parts.query or parts.fragment or parts.username:
            raise UsageError("bad-config", f"{foreign(base_url)!r} is not an https URL")
        self._host, self._port = parts.hostname, parts.port or 443
        self._prefix = parts.path.rstrip("/")
        self._deadline = deadline
        self._codes = codes or Codes()
        self._pins = _read_pins(certificate_pem) if certificate_pem is not None else frozenset()
        self._strict = _make_context(certificate_pem, check_hostname=True)
        self._relaxed = _make_context(certificate_pem, check_hostname=False) if self._pins else None
        self._idle_limit = _IDLE_LIMIT if keep_alive else 0
        self._lock = threading.Lock()
        self._idle: list[http.client.HTTPConnection] = []

    @property
    def origin(self) -> str:
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"https://{host}:{self._port}"

    def request(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        *,
        deadline: float | None = None,
        max_body: int = MAX_BODY,
    ) -> Response:
        """One request, one whole answer, any status.

        Raises `EnvironmentFault(codes.unreachable)` when nobody answers, `PeerError(codes.identity)` when somebody else
        does, `PeerError(codes.protocol)` for an answer that is not HTTP, `PeerError("too-large")`, and
        `EnvironmentFault("deadline")`.
        """
        end = time.monotonic() + (self._deadline if deadline is None else deadline)
        reused = self._take_idle()
        if reused is not None:
            try:
                return self._exchange(reused, method, path, body, headers, end, max_body)
            except _GONE:
                pass  # the server closed it while it was idle; a fresh one tells whether it is really gone
            except OSError as error:
                raise self._explain(error, end) from error
        try:
            connection = self._connect(end)
            return self._exchange(connection, method, path, body, headers, end, max_body)
        except EnclaveCcError:
            raise
        except OSError as error:
            raise self._explain(error, end) from error

    def close(self) -> None:
        """Closes the idle connections; the client may be used again."""
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def _take_idle(self) -> http.client.HTTPConnection | None:
        with self._lock:
            return self._idle.pop() if self._idle else None

    def _connect(self, end: float) -> http.client.HTTPConnection:
        """A TLS connection to the right server: strict first, then, only if the name alone was wrong, by exact pin."""
        try:
            tls = self._handshake(self._strict, end)
        except ssl.SSLCertVerificationError as error:
            if self._relaxed is None or error.verify_code not in (_HOSTNAME_MISMATCH, _IP_MISMATCH):
                raise
            tls = self._handshake(self._relaxed, end)
            if tls.getpeercert(binary_form=True) not in self._pins:
                tls.close()
                raise
        connection = http.client.HTTPConnection(self._host, self._port)
        connection.sock = tls
        return connection

    def _handshake(self, context: ssl.SSLContext, end: float) -> _DeadlineSocket:
        last: OSError | None = None
        for family, kind, protocol, _, address in socket.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM):
            plain = socket.socket(family, kind, protocol)
            try:
                plain.settimeout(_remaining(end))
                plain.connect(address)
                plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                tls = context.wrap_socket(plain, server_hostname=self._host, do_handshake_on_connect=False)
            except OSError as error:
                plain.close()
                last = error
                continue
            try:
                tls.settimeout(_remaining(end))
                tls.do_handshake()
            except BaseException:
                tls.close()
                raise
            return cast(_DeadlineSocket, tls)
        raise last if last is not None else OSError(f"{self._host} has no address")

    def _exchange(
        self,
        connection: http.client.HTTPConnection,
        method: str,
        path: str,
        body: bytes | None,
        headers: Mapping[str, str] | None,
        end: float,
        max_body: int,
    ) -> Response:
        cast(_DeadlineSocket, connection.sock).end = end
        keep = False
        try:
            connection.request(method, self._prefix + path, body, dict(headers or {}))
            answer = connection.getresponse()
            data = answer.read(max_body + 1)
            if len(data) > max_body:
                raise PeerError("too-large", f"{self.origin} answered with more than {max_body} bytes")
            if answer.length:  # `read(n)` does not tell a short body from a whole one
                raise ConnectionResetError("the connection ended inside the answer")
            keep = not answer.will_close and answer.isclosed()
            fields = tuple((name.lower(), value) for name, value in answer.getheaders())
            return Response(answer.status, fields, data)
        except _GONE:  # before `HTTPException`: RemoteDisconnected is one of those too
            raise
        except http.client.IncompleteRead as error:
            raise ConnectionResetError("the connection ended inside the answer") from error
        except http.client.HTTPException as error:
            raise PeerError(self._codes.protocol, f"{self.origin} does not answer in HTTP ({type(error).__name__})") from error
        finally:
            if keep:
                with self._lock:
                    keep = len(self._idle) < self._idle_limit
                    if keep:
                        self._idle.append(connection)
            if not keep:
                connection.close()

    def _explain(self, error: OSError, end: float) -> EnclaveCcError:
        if isinstance(error, ssl.SSLCertVerificationError):
            return PeerError(self._codes.identity, f"{self.origin} shows another certificate than pinned ({error.verify_message})")
        if isinstance(error, TimeoutError) and time.monotonic() >= end - 0.001:
            return EnvironmentFault("deadline", f"{self.origin} did not answer in time")
        if isinstance(error, ssl.SSLError) and not isinstance(error, _GONE):
            return PeerError(self._codes.identity, f"{self.origin} does not speak TLS as needed ({foreign(error.reason)})")
        return EnvironmentFault(self._codes.unreachable, f"{self.origin} cannot be reached ({foreign(error.strerror or error)})")


class _DeadlineSocket(ssl.SSLSocket):
    """A TLS socket whose every wait ends at `end`: a peer that drips bytes cannot stretch a request."""

    end: float = float("inf")

    def recv_into(self, *arguments: Any, **options: Any) -> int:
        self.settimeout(_remaining(self.end))
        return super().recv_into(*arguments, **options)

    def send(self, *arguments: Any, **options: Any) -> int:
        self.settimeout(_remaining(self.end))
        return super().send(*arguments, **options)


def _remaining(end: float) -> float:
    left = end - time.monotonic()
    if left <= 0:
        raise TimeoutError("deadline")
    return left


def _make_context(certificate_pem: str | None, *, check_hostname: bool) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.sslsocket_class = _DeadlineSocket
    context.check_hostname = check_hostname
    if certificate_pem is None:
        context.load_default_certs()
        return context
    # A pinned leaf is its own anchor, whether or not it calls itself a CA.
    context.verify_flags |= ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN
    try:
        context.load_verify_locations(cadata=certificate_pem)
    except (ssl.SSLError, ValueError) as error:
        raise UsageError("bad-config", "the pinned certificate is not PEM") from error
    return context


_PEM = re.compile(r"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.DOTALL)


def _read_pins(certificate_pem: str) -> frozenset[bytes]:
    try:
        pins = frozenset(ssl.PEM_cert_to_DER_cert(block) for block in _PEM.findall(certificate_pem))
    except ValueError as error:
        raise UsageError("bad-config", "the pinned certificate is not PEM") from error
    if not pins:
        raise UsageError("bad-config", "the pinned certificate is not PEM")
    return pins
