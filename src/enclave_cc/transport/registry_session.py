"""Requests to one registry: authentication, redirects, retries, and what a status means."""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable
from urllib.parse import urljoin, urlsplit

from enclave_cc import __version__
from enclave_cc.errors import PeerError, UsageError, foreign
from enclave_cc.transport import connections
from enclave_cc.transport.connections import Body, Endpoint, Response
from enclave_cc.transport.registry_auth import Authorizer
from enclave_cc.wire.oci import auth, document

ERROR_LIMIT = 64 << 10  # bytes read of an answer that matters for messages only
_REDIRECTS = 5
_RETRIES = 2  # of requests that a registry could not serve
_PAUSE = 0.2  # seconds before the first retry; doubled each time
_BUSY = {429, 502, 503, 504}
_HUB, _HUB_SERVER = "docker.io", "registry-1.docker.io"


def parse_host(host: str, *, insecure: bool) -> Endpoint:
    """`HOST[:PORT]` of a reference, as the server to talk to; `insecure` means plain HTTP."""
    host = _HUB_SERVER if host == _HUB else host
    parts = urlsplit(f"//{host}")
    try:
        port = parts.port
    except ValueError as error:
        raise UsageError("bad-reference", f"{foreign(host)!r} has no valid port") from error
    if not parts.hostname:
        raise UsageError("bad-reference", f"{foreign(host)!r} is not a registry host")
    return Endpoint(parts.hostname, port or (80 if insecure else 443), not insecure)


class RegistrySession:
    """Sends requests to one registry. Safe for many threads; connections are kept and shared."""

    def __init__(
        self,
        host: str,
        *,
        insecure: bool = False,
        credentials: auth.Credentials | Callable[[], auth.Credentials | None] | None = None,
        ca_pem: str | None = None,
        deadline: float = 30.0,
    ) -> None:
        self.host = host
        self.endpoint = parse_host(host, insecure=insecure)
        self._deadline = deadline
        self._pool = connections.ConnectionPool(
            None if insecure and ca_pem is None else _make_context(ca_pem), unreachable="registry-unreachable"
        )
        find = credentials if callable(credentials) else lambda: credentials
        self._authorizer = Authorizer(self.endpoint, self._pool, find, deadline=deadline)

    def close(self) -> None:
        self._pool.close()

    def send(
        self,
        method: str,
        path: str,
        repository: str,
        *,
        headers: dict[str, str] | None = None,
        push: bool = False,
        body: Body | None = None,
        follow: bool = False,
        endpoint: Endpoint | None = None,
    ) -> Response:
        """One request with its authentication, retries while the registry is busy, and (`follow`) redirects."""
        scope = f"repository:{repository}:" + ("pull,push" if push else "pull")
        endpoint = endpoint or self.endpoint
        sent = {"User-Agent": f"enclave-cc/{__version__}", "Accept-Encoding": "identity", **(headers or {})}
        answered: str | None = None
        denials = redirects = retries = 0
        while True:
            ours = endpoint == self.endpoint  # credentials go to the registry itself and nowhere else
            used = (answered or self._authorizer.header(scope)) if ours else None
            complete = {**sent, "Authorization": used} if used else sent
            response = self._pool.request(endpoint, method, path, complete, body, timeout=self._deadline)
            if response.status == 401 and ours and denials < 2:
                with response:
                    response.skim(ERROR_LIMIT)
                    challenge = response.header("WWW-Authenticate")
                if not challenge:
                    raise PeerError("registry-denied", f"{self.host} denies {repository} and does not say what it wants")
                denials += 1
                answered = self._authorizer.answer(challenge, scope, used)
            elif response.status in {301, 302, 303, 307, 308} and follow and redirects < _REDIRECTS:
                with response:
                    response.skim(ERROR_LIMIT)
                    location = response.header("Location") or ""
                redirects += 1
                endpoint, path = self.resolve(endpoint, path, location)
            elif response.status in _BUSY and retries < _RETRIES:
                with response:
                    response.skim(ERROR_LIMIT)
                retries += 1
                self.pause(retries, None)
            else:
                return response

    def resolve(self, endpoint: Endpoint, path: str, location: str) -> tuple[Endpoint, str]:
        """The endpoint and path that a `Location` means. TLS is never left for plain HTTP."""
        scheme = "https" if endpoint.secure else "http"
        host = f"[{endpoint.host}]" if ":" in endpoint.host else endpoint.host
        try:
            target = urlsplit(urljoin(f"{scheme}://{host}:{endpoint.port}{path}", location))
            port = target.port
        except ValueError as error:
            raise PeerError("registry-failed", f"{self.host} sends us to {foreign(location)!r}") from error
        if target.scheme not in {"http", "https"} or not target.hostname or target.username is not None:
            raise PeerError("registry-failed", f"{self.host} sends us to {foreign(location)!r}")
        secure = target.scheme == "https"
        if self.endpoint.secure and not secure:
            raise PeerError("registry-failed", f"{self.host} sends us to {foreign(location)!r}, without TLS")
        found = Endpoint(target.hostname, port or (443 if secure else 80), secure)
        return found, (target.path or "/") + (f"?{target.query}" if target.query else "")

    def expect(self, response: Response, status: int, what: str) -> None:
        """Raises the error that any other status means, with the registry's own first words."""
        if response.status == status:
            return
        said = _first_error(response.skim(ERROR_LIMIT))
        if response.status in {401, 403}:
            raise PeerError("registry-denied", f"{self.host} denies {what}{said}")
        if response.status == 404:
            raise PeerError("image-not-found", f"{self.host} has no {what}{said}")
        raise PeerError("registry-failed", f"{self.host} answered {what} with status {response.status}{said}")

    def wait(self, until: float | None) -> float:
        """Seconds that the next wait may last. Raises `PeerError("deadline")` when `until` (monotonic) is over."""
        if until is None:
            return self._deadline
        left = until - time.monotonic()
        if left <= 0:
            raise PeerError("deadline", f"{self.host} did not deliver in the time given")
        return min(left, self._deadline)

    def pause(self, attempt: int, until: float | None) -> None:
        """Waits before retry number `attempt`, twice as long each time. Raises as `wait`."""
        time.sleep(min(_PAUSE * 2 ** (attempt - 1), self.wait(until)))


def _first_error(data: bytes) -> str:
    """The first message of the distribution API's error list, if that is what `data` is."""
    try:
        errors = document.Document.parse(data, "the error", limit=ERROR_LIMIT).documents("errors")
        return f" ({foreign(errors[0].text('message', '') or errors[0].text('code', ''))})" if errors else ""
    except PeerError:
        return ""


def _make_context(ca_pem: str | None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # `create_default_context` heeds SSLKEYLOGFILE
    context.load_default_certs()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if ca_pem is not None:
        try:
            context.load_verify_locations(cadata=ca_pem)
        except (ssl.SSLError, ValueError) as error:
            raise UsageError("bad-config", "the registry CA is not PEM of certificates") from error
    return context
