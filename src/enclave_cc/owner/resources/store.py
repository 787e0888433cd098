"""What a resource store offers; `tests/suites/resource_store.py` says what every back-end must hold to."""

from __future__ import annotations

from typing import Protocol

from enclave_cc.crypto.secret import Secret
from enclave_cc.record import record
from enclave_cc.wire.rcar.uri import ResourcePath

# RCAR's own body limit; a resource is a key, a policy or a credential, not a blob.
MAX_VALUE = 2 * 1024 * 1024


@record
class Resource:
    """One version of a value."""

    path: ResourcePath
    version: int
    created: int  # Unix seconds
    value: Secret


@record
class ResourceInfo:
    """What a listing shows: never the value."""

    path: ResourcePath
    version: int
    created: int  # Unix seconds
    size: int  # bytes


class ResourceStore(Protocol):
    """Versioned values by path. Every call is atomic; `put` and `delete` are on disk when they return."""

    def put(self, path: ResourcePath, value: Secret) -> int:
        """Stores a new version and returns its number: 1, then one more each time, across deletions too.

        Raises `UsageError("too-large")` above `MAX_VALUE`."""
        ...

    def get(self, path: ResourcePath, version: int | None = None) -> Resource:
        """The latest, or the given, version. Raises `UsageError("not-found")`."""
        ...

    def delete(self, path: ResourcePath) -> None:
        """Removes all versions. Raises `UsageError("not-found")`."""
        ...

    def list(self, prefix: str = "") -> list[ResourceInfo]:
        """The latest version of each path that begins with `prefix`, sorted by path."""
        ...
