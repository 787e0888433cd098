"""Content digests (OCI image-spec, descriptor.md). SHA-256 only: it is what every registry serves."""

from __future__ import annotations

import re

from enclave_cc.errors import PeerError, foreign

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


class Digest(str):
    """`sha256:<64 lower-case hex>`, checked; a string otherwise, so that it fits into paths and JSON."""

    __slots__ = ()

    @classmethod
    def parse(cls, text: str) -> Digest:
        """Raises `PeerError("malformed")` for anything but a SHA-256 digest."""
        if not _DIGEST.fullmatch(text):
            raise PeerError("malformed", f"{foreign(text)!r} is not a sha256 digest")
        return cls(text)

    @classmethod
    def of(cls, data: bytes) -> Digest:
        """The digest of `data`."""
        import hashlib  # 4 ms; whoever only names images does without

        return cls("sha256:" + hashlib.sha256(data).hexdigest())

    @property
    def hex(self) -> str:
        """The 64 hex digits, as registries name files and signature tags."""
        return self[len("sha256:") :]

    def check(self, data: bytes, name: str) -> bytes:
        """Returns `data` if this is its digest. Raises `PeerError("digest-mismatch")`."""
        if Digest.of(data) != self:
            raise PeerError("digest-mismatch", f"{name} is not the {self} that was asked for")
        return data
