"""A client of the OCI distribution API (distribution-spec 1.1): pull, push, list, referrers.

Moves bytes and checks digests; whether an image may run is decided elsewhere. `http.client` and blocking sockets:
this runs in the agent enclave too.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable, Iterator
from urllib.parse import quote, urlencode, urljoin, urlsplit

from enclave_cc import __version__
from enclave_cc.errors import EnvironmentFault, PeerError, UsageError, foreign
from enclave_cc.transport import connections
from enclave_cc.transport.connections import Body, Endpoint, Response
from enclave_cc.transport.registry_auth import Authorizer
from enclave_cc.wire.oci import auth, document, manifest
from enclave_cc.wire.oci import media_type as media
from enclave_cc.wire.oci.digest import Digest

_REDIRECTS = 5
_RETRIES = 2  # of requests that a registry could not serve (429, 502, 503, 504)
_RESUMES = 5  # broken connections in a row, without a byte in between
_PAUSE = 0.2  # seconds before the first retry; doubled each time
_ERROR_LIMIT = 64 << 10
_BUSY = {429, 502, 503, 504}
_PAGES = 100
_ACCEPT = ", ".join(media.MANIFESTS + media.INDEXES)
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


class Registry:
    """One registry. Safe for many threads; connections are kept and shared.

    `insecure` speaks plain HTTP. `credentials` may be a function, called when the registry first asks for them.
    `ca_pem` are CAs trusted besides the system's. `deadline` (seconds) bounds each request, and for a blob each
    wait for its next bytes.

    All methods raise `EnvironmentFault("registry-unreachable")` and `PeerError`: "registry-denied" (401, 403),
    "image-not-found" (404), "registry-failed" (any other answer), "digest-mismatch".
    """

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
        self._endpoint = parse_host(host, insecure=insecure)
        self._deadline = deadline
        self._pool = connections.ConnectionPool(
            None if insecure and ca_pem is None else _make_context(ca_pem), unreachable="registry-unreachable"
        )
        find = credentials if callable(credentials) else lambda: credentials
        self._authorizer = Authorizer(self._endpoint, self._pool, find, deadline=deadline)

    def close(self) -> None:
        self._pool.close()

    # pull

    def get_manifest(self, repository: str, target: str) -> tuple[bytes, str, Digest]:
        """The manifest or index under a tag or digest: its bytes, its media type as served, its digest.

        With a digest as `target` the bytes are checked against it.
        """
        path = f"/v2/{repository}/manifests/{target}"
        with self._send("GET", path, repository, headers={"Accept": _ACCEPT}) as response:
            self._expect(response, 200, f"{repository}@{target}" if ":" in target else f"{repository}:{target}")
            data = response.read(document.MANIFEST_LIMIT)
            kind = (response.header("Content-Type") or "").partition(";")[0].strip()
        digest = Digest.of(data)
        if ":" in target:
            Digest.parse(target).check(data, f"the manifest in {self.host}/{repository}")
        return data, kind, digest

    def find_manifest(self, repository: str, target: str) -> Digest | None:
        """The digest under a tag as the registry states it (HEAD), or None. Not checked against any bytes."""
        path = f"/v2/{repository}/manifests/{target}"
        with self._send("HEAD", path, repository, headers={"Accept": _ACCEPT}) as response:
            response.skim(_ERROR_LIMIT)
            if response.status == 404:
                return None
            self._expect(response, 200, f"{repository}:{target}")
            stated = response.header("Docker-Content-Digest")
        return Digest.parse(stated) if stated else self.get_manifest(repository, target)[2]

    def has_blob(self, repository: str, digest: Digest) -> bool:
        """Whether the registry says it has the blob."""
        path = f"/v2/{repository}/blobs/{digest}"
        with self._send("HEAD", path, repository, follow=True) as response:
            response.skim(_ERROR_LIMIT)
            if response.status == 404:
                return False
            self._expect(response, 200, f"{repository}@{digest}")
        return True

    def get_blob(self, repository: str, digest: Digest, *, limit: int) -> bytes:
        """A small blob, whole and checked against its digest. Raises `PeerError("too-large")` above `limit` bytes."""
        path = f"/v2/{repository}/blobs/{digest}"
        with self._send("GET", path, repository, follow=True) as response:
            self._expect(response, 200, f"{repository}@{digest}")
            return digest.check(response.read(limit), f"a blob in {self.host}/{repository}")

    def open_blob(self, repository: str, digest: Digest, size: int, *, until: float | None = None) -> Iterator[bytes]:
        """Yields exactly `size` bytes of a blob, or raises; the caller checks the digest.

        A connection that breaks is resumed where it broke (RFC 9110 14, Range). `until` (monotonic) ends it all.
        """
        done, broken = 0, 0
        while done < size:
            try:
                for chunk in self._read_blob(repository, digest, done, size, until):
                    done, broken = done + len(chunk), 0
                    yield chunk
                if done < size:
                    raise EnvironmentFault(
                        "registry-unreachable", f"{self.host} broke off after {done} of {size} bytes of {digest}"
                    )
            except EnvironmentFault:
                broken += 1
                if broken > _RESUMES:
                    raise
                self._pause(broken, until)

    def _read_blob(self, repository: str, digest: Digest, start: int, size: int, until: float | None) -> Iterator[bytes]:
        headers = {"Range": f"bytes={start}-"} if start else {}
        path = f"/v2/{repository}/blobs/{digest}"
        with self._send("GET", path, repository, headers=headers, follow=True) as response:
            at = start
            if start and response.status == 206:
                if not (response.header("Content-Range") or "").startswith(f"bytes {start}-"):
                    raise PeerError("registry-failed", f"{self.host} answered another range than was asked for")
            else:  # a server that knows no ranges sends it all again
                self._expect(response, 200, f"{repository}@{digest}")
                at = 0
            length = response.header("Content-Length")
            if length is not None and length != str(size - at):
                raise PeerError("digest-mismatch", f"{self.host} has {foreign(length)} bytes of {digest} where {size - at} belong")
            while chunk := response.read_chunk(self._wait(until)):
                at += len(chunk)
                if at > size:
                    raise PeerError("digest-mismatch", f"{self.host} sent more than the {size} bytes of {digest}")
                fresh = chunk[-(at - start) :] if at - len(chunk) < start < at else chunk
                if at > start:
                    yield fresh

    def list_tags(self, repository: str) -> list[str]:
        """All tags of a repository, page by page (Link, RFC 8288)."""
        tags: list[str] = []
        path = f"/v2/{repository}/tags/list"
        for _ in range(_PAGES):
            with self._send("GET", path, repository) as response:
                self._expect(response, 200, repository)
                page = document.Document.parse(response.read(document.MANIFEST_LIMIT), "the tag list")
                link = response.header("Link") or ""
            tags += page.texts("tags")
            if 'rel="next"' not in link or not link.startswith("<"):
                break
            following = urlsplit(urljoin(path, link[1:].partition(">")[0]))
            path = following.path + (f"?{following.query}" if following.query else "")
        return tags

    def list_referrers(self, repository: str, digest: Digest) -> tuple[manifest.Descriptor, ...]:
        """What refers to `digest`: the referrers API, or its tag schema where the registry has none."""
        path = f"/v2/{repository}/referrers/{digest}"
        with self._send("GET", path, repository, headers={"Accept": media.OCI_INDEX}) as response:
            data = response.read(document.MANIFEST_LIMIT)
            if response.status == 200:
                index = manifest.parse_manifest(data, response.header("Content-Type"))
                return index.manifests if isinstance(index, manifest.Index) else ()
            if response.status not in {400, 404, 405}:  # registries before 1.1 refuse the path in these ways
                self._expect(response, 200, repository)
        try:
            data, kind, _ = self.get_manifest(repository, f"sha256-{digest.hex}")
        except PeerError as error:
            if error.code == "image-not-found":
                return ()
            raise
        index = manifest.parse_manifest(data, kind)
        return index.manifests if isinstance(index, manifest.Index) else ()

    # push

    def push_blob(self, repository: str, digest: Digest, body: Body, *, mount_from: str | None = None) -> None:
        """Uploads a blob in one piece unless it is there already; `mount_from` is a repository that may lend it."""
        if self.has_blob(repository, digest):
            return
        query = "?" + urlencode({"mount": digest, "from": mount_from}) if mount_from else ""
        with self._send("POST", f"/v2/{repository}/blobs/uploads/{query}", repository, push=True, body=Body.of(b"")) as response:
            self._expect(response, 202 if response.status != 201 else 201, repository)
            response.skim(_ERROR_LIMIT)
            if response.status == 201:
                return
            location = response.header("Location")
        if not location:
            raise PeerError("registry-failed", f"{self.host} opened an upload without saying where")
        endpoint, path = self._resolve(self._endpoint, f"/v2/{repository}/blobs/uploads/", location)
        path += ("&" if "?" in path else "?") + "digest=" + quote(digest, safe="")
        headers = {"Content-Type": "application/octet-stream"}
        with self._send("PUT", path, repository, headers=headers, push=True, body=body, endpoint=endpoint) as response:
            self._expect(response, 201, repository)
            response.skim(_ERROR_LIMIT)

    def push_manifest(self, repository: str, target: str, data: bytes, media_type: str) -> Digest:
        """Stores a manifest under a tag or digest; returns its digest."""
        headers = {"Content-Type": media_type}
        path = f"/v2/{repository}/manifests/{target}"
        with self._send("PUT", path, repository, headers=headers, push=True, body=Body.of(data)) as response:
            self._expect(response, 201, repository)
            response.skim(_ERROR_LIMIT)
        return Digest.of(data)

    # requests

    def _send(
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
        endpoint = endpoint or self._endpoint
        sent = {"User-Agent": f"enclave-cc/{__version__}", "Accept-Encoding": "identity", **(headers or {})}
        answered: str | None = None
        denials = redirects = retries = 0
        while True:
            ours = endpoint == self._endpoint  # credentials go to the registry itself and nowhere else
            used = (answered or self._authorizer.header(scope)) if ours else None
            complete = {**sent, "Authorization": used} if used else sent
            response = self._pool.request(endpoint, method, path, complete, body, timeout=self._deadline)
            if response.status == 401 and ours and denials < 2:
                with response:
                    response.skim(_ERROR_LIMIT)
                    challenge = response.header("WWW-Authenticate")
                if not challenge:
                    raise PeerError("registry-denied", f"{self.host} denies {repository} and does not say what it wants")
                denials += 1
                answered = self._authorizer.answer(challenge, scope, used)
            elif response.status in {301, 302, 303, 307, 308} and follow and redirects < _REDIRECTS:
                with response:
                    response.skim(_ERROR_LIMIT)
                    location = response.header("Location") or ""
                redirects += 1
                endpoint, path = self._resolve(endpoint, path, location)
            elif response.status in _BUSY and retries < _RETRIES:
                with response:
                    response.skim(_ERROR_LIMIT)
                retries += 1
                self._pause(retries, None)
            else:
                return response

    def _resolve(self, endpoint: Endpoint, path: str, location: str) -> tuple[Endpoint, str]:
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
        if self._endpoint.secure and not secure:
            raise PeerError("registry-failed", f"{self.host} sends us to {foreign(location)!r}, without TLS")
        found = Endpoint(target.hostname, port or (443 if secure else 80), secure)
        return found, (target.path or "/") + (f"?{target.query}" if target.query else "")

    def _expect(self, response: Response, status: int, what: str) -> None:
        """Raises the error that any other status means, with the registry's own first words."""
        if response.status == status:
            return
        said = _first_error(response.skim(_ERROR_LIMIT))
        if response.status in {401, 403}:
            raise PeerError("registry-denied", f"{self.host} denies {what}{said}")
        if response.status == 404:
            raise PeerError("image-not-found", f"{self.host} has no {what}{said}")
        raise PeerError("registry-failed", f"{self.host} answered {what} with status {response.status}{said}")

    def _wait(self, until: float | None) -> float:
        if until is None:
            return self._deadline
        left = until - time.monotonic()
        if left <= 0:
            raise PeerError("deadline", f"{self.host} did not deliver in the time given")
        return min(left, self._deadline)

    def _pause(self, attempt: int, until: float | None) -> None:
        time.sleep(min(_PAUSE * 2 ** (attempt - 1), self._wait(until)))


def _first_error(data: bytes) -> str:
    """The first message of the distribution API's error list, if that is what `data` is."""
    try:
        errors = document.Document.parse(data, "the error", limit=_ERROR_LIMIT).documents("errors")
        return f" ({foreign(errors[0].text('message', '') or errors[0].text('code', ''))})" if errors else ""
    except PeerError:
        return ""


def _make_context(ca_pem: str | None) -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if ca_pem is not None:
        try:
            context.load_verify_locations(cadata=ca_pem)
        except (ssl.SSLError, ValueError) as error:
            raise UsageError("bad-config", "the registry CA is not PEM of certificates") from error
    return context
