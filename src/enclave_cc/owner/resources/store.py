"""What a resource store offers; `tests/suites/resource_store.py` says what every back-end must hold to."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Protocol

from enclave_cc.crypto.secret import Secret
from enclave_cc.errors import UsageError, foreign
from enclave_cc.record import field, record
from enclave_cc.wire.rcar.uri import ResourcePath

# RCAR's own body limit; a resource is a key, a policy or a credential, not a blob.
MAX_VALUE = 2 * 1024 * 1024
# Old versions are kept so that a key put in by mistake can be undone, not as an archive.
KEPT_VERSIONS = 16
PAGE, MAX_PAGE = 100, 1000
# What the narrowest back-end holds: Vault's custom metadata has 64 keys of 128 bytes with values of 512.
MAX_TAGS = 32
MAX_AUTHOR = 100  # bytes
_TAG_KEY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./-]{0,62}\Z")
_PATH_TEXT = re.compile(r"[A-Za-z0-9_./-]{0,1024}\Z")
_MAX_TAG_VALUE = 256  # bytes

Tags = Mapping[str, str]
NO_TAGS: Tags = {}


@record
class Resource:
    """One version of a value."""

    path: ResourcePath
    version: int
    created: int  # Unix seconds
    value: Secret


@record
class ResourceInfo:
    """What a listing shows of a path's latest version: never the value."""

    path: ResourcePath
    version: int
    created: int  # Unix seconds
    size: int  # bytes
    author: str = ""  # who put this version, as the admin token named them
    tags: Tags = field(default_factory=dict)


@record
class Version:
    """One line of a path's history. The value of a `removed` version is gone."""

    version: int
    created: int  # Unix seconds
    size: int  # bytes
    author: str
    removed: int | None = None  # Unix seconds
    removed_by: str = ""


@record
class Page:
    """A part of a listing, sorted by path; `next`, if not None, is the `after` of the following part."""

    items: tuple[ResourceInfo, ...]
    next: str | None


class ResourceStore(Protocol):
    """Versioned values by path. Every call is atomic; what changes something is durable when it returns.

    Every method raises `EnvironmentFault` when the back-end fails: "store-unreachable", "store-sealed", "store-denied",
    "store-failed", "deadline", "disk-full", "environment". `author` says who asked for the change.
    """

    def put(self, path: ResourcePath, value: Secret, *, author: str = "", tags: Tags | None = None) -> int:
        """Stores a new version and returns its number: 1, then one more each time, across deletions too.

        `tags` replace those of the path; without, it keeps them. At most `KEPT_VERSIONS` versions stay.
        Raises `UsageError`: "too-large" above the store's size limit, "usage" for tags that are not allowed."""
        ...

    def get(self, path: ResourcePath, version: int | None = None) -> Resource:
        """The latest, or the given, version. Raises `UsageError("not-found")`."""
        ...

    def tag(self, path: ResourcePath, tags: Mapping[str, str | None], *, author: str = "") -> ResourceInfo:
        """Sets each tag of the latest version, or takes it off where the value is None; the others stay.

        Raises `UsageError`: "not-found", or "usage" for tags that are not allowed."""
        ...

    def delete(self, path: ResourcePath, *, author: str = "") -> None:
        """Removes the values of all versions, and the tags. Raises `UsageError("not-found")`."""
        ...

    def list(self, prefix: str = "", *, tags: Mapping[str, str | None] = NO_TAGS, after: str = "", limit: int = PAGE) -> Page:
        """Paths that begin with `prefix`, come behind `after`, and have all of `tags` (a value of None: any value).

        Raises `UsageError("usage")` unless 1 <= limit <= `MAX_PAGE`, and for an `after` that is not of a page."""
        ...

    def history(self, path: ResourcePath) -> tuple[Version, ...]:
        """The newest first, at most `KEPT_VERSIONS`; of a deleted path too. Raises `UsageError("not-found")`."""
        ...


def check_tags(tags: Mapping[str, str | None]) -> None:
    """Raises `UsageError("usage")` for a key, value or number of tags that not every back-end could hold."""
    if len(tags) > MAX_TAGS:
        raise UsageError("usage", f"a resource has at most {MAX_TAGS} tags")
    for key, value in tags.items():
        if _TAG_KEY.match(key) is None:
            raise UsageError("usage", f"{foreign(key)!r} cannot be a tag", "Use letters, digits, _ . / and -; at most 63.")
        if value is not None and (not value.isprintable() or len(value.encode("utf-8", "replace")) > _MAX_TAG_VALUE):
            raise UsageError("usage", f"the value of tag {key} is not printable text of at most {_MAX_TAG_VALUE} bytes")


def apply_tags(present: Tags, changes: Mapping[str, str | None]) -> dict[str, str]:
    """`present` with `changes` made. Raises `UsageError("usage")` as `check_tags`."""
    check_tags(changes)
    after = {**present, **changes}
    kept = {key: value for key, value in after.items() if value is not None}
    check_tags(kept)
    return dict(sorted(kept.items()))


def match_tags(present: Tags, wanted: Mapping[str, str | None]) -> bool:
    return all(key in present and value in (None, present[key]) for key, value in wanted.items())


def check_value(value: Secret, limit: int) -> None:
    if len(value) > limit:
        raise UsageError("too-large", f"a resource has at most {limit} bytes")


def check_page(after: str, limit: int) -> None:
    if not 1 <= limit <= MAX_PAGE:
        raise UsageError("usage", f"a page of a listing has 1 to {MAX_PAGE} items")
    if not can_begin_path(after):
        raise UsageError("usage", "a page of a listing begins behind a path")


def can_begin_path(text: str) -> bool:
    return _PATH_TEXT.match(text) is not None


def can_be_tag(key: str, value: str | None) -> bool:
    return _TAG_KEY.match(key) is not None and (value is None or value.isprintable())


def clip_author(author: str) -> str:
    """At most `MAX_AUTHOR` bytes of printable text."""
    clean = foreign(author).encode("utf-8", "replace")[:MAX_AUTHOR]
    return clean.decode("utf-8", "ignore")


def absent(path: object) -> UsageError:
    return UsageError("not-found", f"there is no resource {path}", "See `enclave-cc resource ls`.")
