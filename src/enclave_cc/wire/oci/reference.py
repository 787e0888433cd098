"""Image references: `HOST[:PORT]/REPOSITORY[:TAG][@DIGEST]` (distribution/reference grammar).

Docker Hub's short names are normalised as docker does: `busybox` is `docker.io/library/busybox`.
"""

from __future__ import annotations

import re

from enclave_cc.errors import PeerError, UsageError, foreign
from enclave_cc.record import record
from enclave_cc.wire.oci.digest import Digest

_HOST = re.compile(
    r"(?:(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]{0,61}[a-zA-Z0-9])"
    r"(?:\.(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]{0,61}[a-zA-Z0-9])){0,20}|\[[0-9a-fA-F:]{2,45}\])(?::[0-9]{1,5})?"
)
_COMPONENT = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_REPOSITORY_LIMIT = 255  # characters, distribution/reference NameTotalLengthMax
_HUB = "docker.io"


@record
class Reference:
    """Where an image lies, and which one: by tag, by digest, or by both (then the digest decides)."""

    registry: str
    repository: str
    tag: str | None = None
    digest: Digest | None = None

    def __post_init__(self) -> None:
        port = self.registry.rpartition(":")[2] if not self.registry.endswith("]") and ":" in self.registry else "0"
        if not _HOST.fullmatch(self.registry) or int(port) > 0xFFFF:
            raise PeerError("malformed", f"{foreign(self.registry)!r} is not a registry host")
        components = self.repository.split("/")
        if len(self.repository) > _REPOSITORY_LIMIT or not all(_COMPONENT.fullmatch(c) for c in components):
            raise PeerError("malformed", f"{foreign(self.repository)!r} is not a repository name")
        if self.tag is not None and not _TAG.fullmatch(self.tag):
            raise PeerError("malformed", f"{foreign(self.tag)!r} is not a tag")

    @classmethod
    def parse(cls, text: str) -> Reference:
        """A reference that a person typed. Raises `UsageError("bad-reference")`."""
        try:
            return cls.parse_hostile(text)
        except PeerError as error:
            raise UsageError("bad-reference", f"{foreign(text)!r}: {error.what}") from error

    @classmethod
    def parse_hostile(cls, text: str) -> Reference:
        """A reference out of a message or a signature. Raises `PeerError("malformed")`."""
        if len(text) > 1024:
            raise PeerError("malformed", "the reference is longer than 1024 characters")
        rest, at, digest_text = text.partition("@")
        digest = Digest.parse(digest_text) if at else None
        head, slash, tail = rest.partition("/")
        if slash and ("." in head or ":" in head or head == "localhost" or head != head.lower()):
            registry, name = head, tail
        else:
            registry, name = _HUB, rest
        if registry in {"index.docker.io", "registry-1.docker.io"}:
            registry = _HUB
        repository, colon, tag = name.partition(":")
        if registry == _HUB and "/" not in repository:
            repository = "library/" + repository
        return cls(registry, repository, tag if colon else None, digest)

    @property
    def name(self) -> str:
        """`HOST/REPOSITORY`, the key of launch policies and signature scopes."""
        return f"{self.registry}/{self.repository}"

    @property
    def target(self) -> str:
        """What to ask the registry for: the digest, else the tag, else `latest`."""
        return self.digest or self.tag or "latest"

    def with_digest(self, digest: Digest) -> Reference:
        """The same name, pinned."""
        return Reference(self.registry, self.repository, self.tag, digest)

    def with_default_tag(self) -> Reference:
        """The same reference; `latest` written out where neither tag nor digest is given."""
        if self.tag is None and self.digest is None:
            return Reference(self.registry, self.repository, "latest")
        return self

    def __str__(self) -> str:
        return self.name + (f":{self.tag}" if self.tag else "") + (f"@{self.digest}" if self.digest else "")
