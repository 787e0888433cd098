"""Several back-ends under one store: each takes the paths below its mount point, the most specific mount wins.

What a back-end holds outside of what is mounted on it does not show: neither in `get` nor in a listing.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping
from itertools import islice

from enclave_cc.crypto.secret import Secret
from enclave_cc.errors import PeerError, UsageError, foreign
from enclave_cc.owner.resources.store import (
    MAX_PAGE,
    NO_TAGS,
    PAGE,
    Page,
    Resource,
    ResourceInfo,
    ResourceStore,
    Tags,
    Version,
    check_page,
)
from enclave_cc.wire.rcar.uri import ResourcePath


class MountedStore:
    """A `ResourceStore` of several."""

    def __init__(self, default: ResourceStore, mounts: Mapping[str, ResourceStore]) -> None:
        """`mounts`: by REPOSITORY, REPOSITORY/TYPE or REPOSITORY/TYPE/TAG. Raises `UsageError("bad-config")`."""
        for point in mounts:
            check_point(point)
        self._default = default
        self._mounts = dict(mounts)

    def put(self, path: ResourcePath, value: Secret, *, author: str = "", tags: Tags | None = None) -> int:
        return self._find(path).put(path, value, author=author, tags=tags)

    def get(self, path: ResourcePath, version: int | None = None) -> Resource:
        return self._find(path).get(path, version)

    def tag(self, path: ResourcePath, tags: Mapping[str, str | None], *, author: str = "") -> ResourceInfo:
        return self._find(path).tag(path, tags, author=author)

    def delete(self, path: ResourcePath, *, author: str = "") -> None:
        self._find(path).delete(path, author=author)

    def history(self, path: ResourcePath) -> tuple[Version, ...]:
        return self._find(path).history(path)

    def list(self, prefix: str = "", *, tags: Mapping[str, str | None] = NO_TAGS, after: str = "", limit: int = PAGE) -> Page:
        check_page(after, limit)
        # Only who may hold something with this prefix is asked.
        sources = [self._walk(point, prefix, tags, after, limit) for point in ("", *self._mounts)]
        merged = heapq.merge(*sources, key=lambda info: str(info.path))
        found = list(islice(merged, limit + 1))
        return Page(tuple(found[:limit]), str(found[limit - 1].path) if len(found) > limit else None)

    def _find(self, path: ResourcePath) -> ResourceStore:
        return self._mounts.get(self._point_of(path), self._default)

    def _point_of(self, path: ResourcePath) -> str:
        for point in (str(path), f"{path.repository}/{path.type}", path.repository):
            if point in self._mounts:
                return point
        return ""

    def _walk(self, point: str, prefix: str, tags: Mapping[str, str | None], after: str, limit: int) -> Iterator[ResourceInfo]:
        """What the back-end mounted at `point` shows there, sorted."""
        below = point if point.count("/") == 2 or not point else f"{point}/"
        if not below.startswith(prefix) and not prefix.startswith(below):
            return
        store, narrow = self._mounts.get(point, self._default), max(prefix, below, key=len)
        cursor: str | None = after
        while cursor is not None:
            page = store.list(narrow, tags=tags, after=cursor, limit=min(limit + 1, MAX_PAGE))
            yield from (info for info in page.items if self._point_of(info.path) == point)
            cursor = page.next


def check_point(point: str) -> None:
    """Raises `UsageError("bad-config")` for what is not REPOSITORY, REPOSITORY/TYPE or REPOSITORY/TYPE/TAG."""
    segments = point.split("/")
    try:
        ResourcePath(*segments, *("x",) * (3 - len(segments)))
    except (PeerError, TypeError) as error:
        raise UsageError(
            "bad-config", f"[resources.mounts] {foreign(point)!r} is not REPOSITORY, REPOSITORY/TYPE or REPOSITORY/TYPE/TAG"
        ) from error
