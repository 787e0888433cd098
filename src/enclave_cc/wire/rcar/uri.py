"""Resource names: `kbs://[host]/repository/type/tag` and the path `repository/type/tag` in the KBS.

    kbs[+plugin]://[host[:port]]/<segment>/...[?query]

The host part is ignored: a client asks the KBS it is configured with, never one that a URI names.
"""

from __future__ import annotations

import re

from enclave_cc.errors import PeerError, foreign
from enclave_cc.record import record

# Trustee's `ResourceDesc`: a segment cannot begin with a dot, so `.` and `..` do not exist.
_SEGMENT = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,254}\Z")
_SCHEME = re.compile(r"kbs(?:\+([a-z0-9-]{1,64}))?://([^/?#]{0,255})/([^?#]{1,1024})(?:\?([^#]{0,1024}))?\Z")
_QUERY = re.compile(r"[A-Za-z0-9_.~%&=+-]*\Z")


@record
class ResourcePath:
    """Where a resource lies in a store: exactly three segments."""

    repository: str
    type: str
    tag: str

    def __post_init__(self) -> None:
        for segment in (self.repository, self.type, self.tag):
            if _SEGMENT.match(segment) is None:
                raise PeerError("malformed", f"{foreign(segment)!r} cannot be a segment of a resource path")

    @classmethod
    def parse(cls, text: str) -> ResourcePath:
        """From `repository/type/tag`. Raises `PeerError("malformed")`."""
        parts = text.split("/")
        if len(parts) != 3:
            raise PeerError("malformed", f"{foreign(text)!r} is not a resource path REPOSITORY/TYPE/TAG")
        return cls(*parts)

    def __str__(self) -> str:
        return f"{self.repository}/{self.type}/{self.tag}"

    @property
    def uri(self) -> str:
        return f"kbs:///{self}"


@record
class ResourceUri:
    """A parsed resource URI; `kbs+resource://` and `kbs://` are one."""

    plugin: str
    segments: tuple[str, ...]
    query: str = ""

    @classmethod
    def parse(cls, text: str) -> ResourceUri:
        """Raises `PeerError("malformed")`."""
        match = _SCHEME.match(text)
        if match is None:
            raise PeerError("malformed", f"{foreign(text)!r} is not a resource URI kbs:///REPOSITORY/TYPE/TAG")
        plugin, _host, path, query = match.groups()
        segments = tuple(path.split("/"))
        if any(_SEGMENT.match(segment) is None for segment in segments) or _QUERY.match(query or "") is None:
            raise PeerError("malformed", f"{foreign(text)!r} has a segment or query that is not allowed")
        if plugin in (None, "resource") and len(segments) != 3:
            raise PeerError("malformed", f"{foreign(text)!r} does not have the three segments of a resource")
        return cls(plugin or "resource", segments, query or "")

    @property
    def request_path(self) -> str:
        """Behind `/kbs/v0/`."""
        path = "/".join((self.plugin, *self.segments))
        return f"{path}?{self.query}" if self.query else path

    def __str__(self) -> str:
        scheme = "kbs" if self.plugin == "resource" else f"kbs+{self.plugin}"
        query = f"?{self.query}" if self.query else ""
        return f"{scheme}:///{'/'.join(self.segments)}{query}"
