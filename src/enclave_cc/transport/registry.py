"""A client of the OCI distribution API (distribution-spec 1.1): pull, push, list, referrers.

Moves bytes and checks digests; whether an image may run is decided elsewhere. `http.client` and blocking sockets:
this runs in the agent enclave too.
"""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import quote, urlencode, urljoin, urlsplit

from enclave_cc.errors import EnvironmentFault, PeerError, foreign
from enclave_cc.transport.connections import Body
from enclave_cc.transport.registry_session import ERROR_LIMIT, RegistrySession
from enclave_cc.wire.oci import document, manifest
from enclave_cc.wire.oci import media_type as media
from enclave_cc.wire.oci.digest import Digest

_RESUMES = 5  # broken connections in a row, without a byte in between
_PAGES = 100
_ACCEPT = ", ".join(media.MANIFESTS + media.INDEXES)


class Registry(RegistrySession):
    """One registry. Safe for many threads; connections are kept and shared.

    `insecure` speaks plain HTTP. `credentials` may be a function, called when the registry first asks for them.
    `ca_pem` are CAs trusted besides the system's. `deadline` (seconds) bounds each request, and for a blob each
    wait for its next bytes.

    All methods raise `EnvironmentFault("registry-unreachable")` and `PeerError`: "registry-denied" (401, 403),
    "image-not-found" (404), "registry-failed" (any other answer), "digest-mismatch".
    """

    # pull

    def get_manifest(self, repository: str, target: str) -> tuple[bytes, str, Digest]:
        """The manifest or index under a tag or digest: its bytes, its media type as served, its digest.

        With a digest as `target` the bytes are checked against it.
        """
        path = f"/v2/{repository}/manifests/{target}"
        with self.send("GET", path, repository, headers={"Accept": _ACCEPT}) as response:
            self.expect(response, 200, f"{repository}@{target}" if ":" in target else f"{repository}:{target}")
            data = response.read(document.MANIFEST_LIMIT)
            kind = (response.header("Content-Type") or "").partition(";")[0].strip()
        digest = Digest.of(data)
        if ":" in target:
            Digest.parse(target).check(data, f"the manifest in {self.host}/{repository}")
        return data, kind, digest

    def find_manifest(self, repository: str, target: str) -> Digest | None:
        """The digest under a tag as the registry states it (HEAD), or None. Not checked against any bytes."""
        path = f"/v2/{repository}/manifests/{target}"
        with self.send("HEAD", path, repository, headers={"Accept": _ACCEPT}) as response:
            response.skim(ERROR_LIMIT)
            if response.status == 404:
                return None
            self.expect(response, 200, f"{repository}:{target}")
            stated = response.header("Docker-Content-Digest")
        return Digest.parse(stated) if stated else self.get_manifest(repository, target)[2]

    def has_blob(self, repository: str, digest: Digest) -> bool:
        """Whether the registry says it has the blob."""
        path = f"/v2/{repository}/blobs/{digest}"
        with self.send("HEAD", path, repository, follow=True) as response:
            response.skim(ERROR_LIMIT)
            if response.status == 404:
                return False
            self.expect(response, 200, f"{repository}@{digest}")
        return True

    def get_blob(self, repository: str, digest: Digest, *, limit: int) -> bytes:
        """A small blob, whole and checked against its digest. Raises `PeerError("too-large")` above `limit` bytes."""
        path = f"/v2/{repository}/blobs/{digest}"
        with self.send("GET", path, repository, follow=True) as response:
            self.expect(response, 200, f"{repository}@{digest}")
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
                self.pause(broken, until)

    def _read_blob(self, repository: str, digest: Digest, start: int, size: int, until: float | None) -> Iterator[bytes]:
        headers = {"Range": f"bytes={start}-"} if start else {}
        path = f"/v2/{repository}/blobs/{digest}"
        with self.send("GET", path, repository, headers=headers, follow=True) as response:
            at = start
            if start and response.status == 206:
                if not (response.header("Content-Range") or "").startswith(f"bytes {start}-"):
                    raise PeerError("registry-failed", f"{self.host} answered another range than was asked for")
            else:  # a server that knows no ranges sends it all again
                self.expect(response, 200, f"{repository}@{digest}")
                at = 0
            length = response.header("Content-Length")
            if length is not None and length != str(size - at):
                raise PeerError("digest-mismatch", f"{self.host} has {foreign(length)} bytes of {digest} where {size - at} belong")
            while chunk := response.read_chunk(self.wait(until)):
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
            with self.send("GET", path, repository) as response:
                self.expect(response, 200, repository)
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
        with self.send("GET", path, repository, headers={"Accept": media.OCI_INDEX}) as response:
            data = response.read(document.MANIFEST_LIMIT)
            if response.status == 200:
                index = manifest.parse_manifest(data, response.header("Content-Type"))
                return index.manifests if isinstance(index, manifest.Index) else ()
            if response.status not in {400, 404, 405}:  # registries before 1.1 refuse the path in these ways
                self.expect(response, 200, repository)
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
        with self.send("POST", f"/v2/{repository}/blobs/uploads/{query}", repository, push=True, body=Body.of(b"")) as response:
            self.expect(response, 202 if response.status != 201 else 201, repository)
            response.skim(ERROR_LIMIT)
            if response.status == 201:
                return
            location = response.header("Location")
        if not location:
            raise PeerError("registry-failed", f"{self.host} opened an upload without saying where")
        endpoint, path = self.resolve(self.endpoint, f"/v2/{repository}/blobs/uploads/", location)
        path += ("&" if "?" in path else "?") + "digest=" + quote(digest, safe="")
        headers = {"Content-Type": "application/octet-stream"}
        with self.send("PUT", path, repository, headers=headers, push=True, body=body, endpoint=endpoint) as response:
            self.expect(response, 201, repository)
            response.skim(ERROR_LIMIT)

    def push_manifest(self, repository: str, target: str, data: bytes, media_type: str) -> Digest:
        """Stores a manifest under a tag or digest; returns its digest."""
        headers = {"Content-Type": media_type}
        path = f"/v2/{repository}/manifests/{target}"
        with self.send("PUT", path, repository, headers=headers, push=True, body=Body.of(data)) as response:
            self.expect(response, 201, repository)
            response.skim(ERROR_LIMIT)
        return Digest.of(data)
