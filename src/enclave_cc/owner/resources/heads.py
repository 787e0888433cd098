"""A head: all that a `VersionedStore` knows of one path, except the values. One JSON object."""

from __future__ import annotations

import json
from typing import Any

from enclave_cc.errors import PeerError
from enclave_cc.owner.resources.store import KEPT_VERSIONS, ResourceInfo, Tags, Version
from enclave_cc.record import field, record, replace
from enclave_cc.wire.rcar.uri import ResourcePath

_FORMAT = 1


@record
class Head:
    """`versions` ascend; the last number was given to the newest, whether or not its value is still there.

    `doomed`: versions that the latest change gave up; whether their values have been removed is not known.
    """

    last: int = 0
    versions: tuple[Version, ...] = ()
    tags: Tags = field(default_factory=dict)
    doomed: tuple[int, ...] = ()

    @property
    def present(self) -> bool:
        return bool(self.versions) and self.versions[-1].removed is None

    def find(self, version: int) -> Version | None:
        return next((each for each in self.versions if each.version == version and each.removed is None), None)

    def add(self, version: Version, tags: Tags) -> Head:
        """With one more version; the oldest go when there are too many. What was doomed must have been removed."""
        versions = (*self.versions, version)
        doomed = tuple(each.version for each in versions[:-KEPT_VERSIONS] if each.removed is None)
        return Head(version.version, versions[-KEPT_VERSIONS:], tags, doomed)

    def remove(self, at: int, author: str) -> Head:
        """With every version's value given up."""
        doomed = {*self.doomed, *(each.version for each in self.versions if each.removed is None)}
        removed = (v if v.removed is not None else replace(v, removed=at, removed_by=author) for v in self.versions)
        return Head(self.last, tuple(removed), {}, tuple(sorted(doomed)))

    def describe(self, path: ResourcePath) -> ResourceInfo:
        newest = self.versions[-1]
        return ResourceInfo(path, newest.version, newest.created, newest.size, newest.author, dict(self.tags))

    def encode(self) -> bytes:
        members = ("version", "created", "size", "author", "removed", "removed_by")
        document = {
            "format": _FORMAT,
            "last": self.last,
            "tags": dict(self.tags),
            "doomed": list(self.doomed),
            "versions": [{name: getattr(each, name) for name in members} for each in self.versions],
        }
        return json.dumps(document, separators=(",", ":")).encode()

    @classmethod
    def parse(cls, data: bytes) -> Head:
        """Raises `PeerError("malformed")`."""
        try:
            document = json.loads(data)
            if document["format"] != _FORMAT:
                raise PeerError("malformed", "the head of a resource is of another format")
            head = cls(
                _take(document, "last", int),
                tuple(_parse_version(each) for each in _take(document, "versions", list)),
                {str(key): str(value) for key, value in _take(document, "tags", dict).items()},
                tuple(_number(each) for each in _take(document, "doomed", list)),
            )
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise PeerError("malformed", "the head of a resource is not what this program writes") from error
        numbers = [each.version for each in head.versions]
        if numbers != sorted(set(numbers)) or (numbers and (numbers[-1] != head.last or numbers[0] < 1)):
            raise PeerError("malformed", "the head of a resource counts its versions wrongly")
        return head


def _parse_version(document: Any) -> Version:
    removed = document["removed"]
    return Version(
        _number(document["version"]),
        _number(document["created"]),
        _number(document["size"]),
        _take(document, "author", str),
        None if removed is None else _number(removed),
        _take(document, "removed_by", str),
    )


def _take(document: Any, name: str, kind: type) -> Any:
    value = document[name]
    if type(value) is not kind:
        raise TypeError(name)
    return value


def _number(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 63:
        raise TypeError("number")
    return value
