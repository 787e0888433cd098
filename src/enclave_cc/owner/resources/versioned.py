"""A `ResourceStore` on anything that holds named objects: local files, a key-value store, a token.

The head decides. `put` writes the value first and the head after it, so that a value counts from the moment its head
names it; a killed writer leaves a value that no head names, and the next `put` writes over it. What is to go is named in
the head as doomed before it is removed, and the next change of the path finishes what a killed one began.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from itertools import islice

from enclave_cc.crypto.secret import Secret
from enclave_cc.errors import EnvironmentFault, PeerError
from enclave_cc.owner.resources.heads import Head
from enclave_cc.owner.resources.objects import ObjectStore
from enclave_cc.owner.resources.sealing import Keyring, Sealed, does_not_open
from enclave_cc.owner.resources.store import (
    MAX_VALUE,
    NO_TAGS,
    PAGE,
    Page,
    Resource,
    ResourceInfo,
    Tags,
    Version,
    absent,
    apply_tags,
    check_page,
    check_value,
    clip_author,
    match_tags,
)
from enclave_cc.record import replace
from enclave_cc.wire.rcar.uri import ResourcePath

_READS = 5  # a reader that is overtaken by so many writers in a row gives up


class VersionedStore:
    """See the module. Safe for as many threads and processes as the object store's locks are."""

    def __init__(
        self, objects: ObjectStore, keys: Keyring | None, *, max_value: int = MAX_VALUE, now: Callable[[], float] = time.time
    ) -> None:
        """`keys` seal the values; None where the back-end keeps secrets itself. `max_value` in bytes."""
        self._objects = objects
        self._keys = keys
        self._max_value = max_value
        self._now = now

    def put(self, path: ResourcePath, value: Secret, *, author: str = "", tags: Tags | None = None) -> int:
        check_value(value, self._max_value)
        name = str(path)
        with self._objects.lock(name):
            head = self._read(name) or Head()
            self._finish(name, head)
            chosen = dict(head.tags) if tags is None else apply_tags({}, tags)
            version = head.last + 1
            self._objects.write_value(name, version, self._seal(name, version, value))
            new = head.add(Version(version, int(self._now()), len(value), clip_author(author)), chosen)
            self._objects.write_head(name, new.encode())
            self._finish(name, new)
        return version

    def get(self, path: ResourcePath, version: int | None = None) -> Resource:
        name = str(path)
        for _ in range(_READS):
            head = self._read(name) or Head()
            found = head.find(head.last if version is None else version)
            if found is None:
                raise absent(path)
            data = self._objects.read_value(name, found.version)
            if data is not None:
                return Resource(path, found.version, found.created, self._open(name, found.version, data))
        raise EnvironmentFault("store-failed", f"the value of resource {name} is not where its head says")

    def tag(self, path: ResourcePath, tags: Mapping[str, str | None], *, author: str = "") -> ResourceInfo:
        name = str(path)
        with self._objects.lock(name):
            head = self._read(name)
            if head is None or not head.present:
                raise absent(path)
            new = replace(head, tags=apply_tags(head.tags, tags))
            self._objects.write_head(name, new.encode())
        return new.describe(path)

    def delete(self, path: ResourcePath, *, author: str = "") -> None:
        name = str(path)
        with self._objects.lock(name):
            head = self._read(name)
            if head is None or not head.present:
                raise absent(path)
            new = head.remove(int(self._now()), clip_author(author))
            self._objects.write_head(name, new.encode())
            self._finish(name, new)

    def list(self, prefix: str = "", *, tags: Mapping[str, str | None] = NO_TAGS, after: str = "", limit: int = PAGE) -> Page:
        check_page(after, limit)
        found = list(islice(self._describe_all(prefix, after, tags), limit + 1))
        return Page(tuple(found[:limit]), str(found[limit - 1].path) if len(found) > limit else None)

    def history(self, path: ResourcePath) -> tuple[Version, ...]:
        head = self._read(str(path))
        if head is None or not head.versions:
            raise absent(path)
        return tuple(reversed(head.versions))

    def reseal(self) -> Iterator[int]:
        """Seals anew each value that is not under the first key; yields how many, path by path.

        Stopped at any point, it goes on where it was when called again."""
        if self._keys is None:
            return
        for name in self._objects.list_names("", ""):
            with self._objects.lock(name):
                head = self._read(name)
                yield 0 if head is None else self._reseal(name, head, self._keys)

    def _reseal(self, name: str, head: Head, keys: Keyring) -> int:
        self._finish(name, head)
        count = 0
        for version in (each.version for each in head.versions if each.removed is None):
            data = self._objects.read_value(name, version)
            if data is not None and _parse(name, data).key_id != keys.active_id:
                value = self._open(name, version, data)
                self._objects.write_value(name, version, self._seal(name, version, value))
                count += 1
        return count

    def _describe_all(self, prefix: str, after: str, tags: Mapping[str, str | None]) -> Iterator[ResourceInfo]:
        for name in self._objects.list_names(prefix, after):
            head = self._read(name)
            if head is not None and head.present and match_tags(head.tags, tags):
                yield head.describe(ResourcePath.parse(name))

    def _finish(self, name: str, head: Head) -> None:
        """Removes what is doomed. The head goes on naming it until the next change: removing twice does no harm."""
        for version in head.doomed:
            self._objects.remove_value(name, version)

    def _read(self, name: str) -> Head | None:
        data = self._objects.read_head(name)
        try:
            return None if data is None else Head.parse(data)
        except PeerError as error:
            raise EnvironmentFault("store-failed", f"{name}: {error.what}") from error

    def _seal(self, name: str, version: int, value: Secret) -> bytes:
        return value.reveal() if self._keys is None else self._keys.seal(name, version, value).encode()

    def _open(self, name: str, version: int, data: bytes) -> Secret:
        return Secret(data) if self._keys is None else self._keys.open(name, version, _parse(name, data))


def _parse(name: str, data: bytes) -> Sealed:
    try:
        return Sealed.parse(data)
    except PeerError as error:
        raise does_not_open(name) from error
