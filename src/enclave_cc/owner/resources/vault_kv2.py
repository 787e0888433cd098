"""Resources in a KV version 2 engine of Vault or OpenBao, in its own versions.

`put` is a check-and-set on the version it read, so that no two writers get one number, wherever they run. A secret is
{"value": base64, "size", "author", "tags", "write"}; one that Vault's own tools wrote needs "value" only. What a
listing shows (author, size, tags) is mirrored in the custom metadata, so that listing reads no value; a writer that was
killed before it had mirrored is healed by the next reader. `delete` destroys every version; Vault keeps counting.

Vault encrypts at rest itself; values are not sealed once more.
"""

from __future__ import annotations

import base64
import json
import re
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from itertools import islice
from typing import Any

from enclave_cc.crypto.secret import Secret
from enclave_cc.errors import EnvironmentFault
from enclave_cc.owner.resources.locks import PathLocks
from enclave_cc.owner.resources.store import (
    KEPT_VERSIONS,
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
from enclave_cc.owner.resources.vault_client import MERGE_PATCH, Answer, VaultClient, take
from enclave_cc.owner.resources.vault_kv1 import check, decode_value, walk
from enclave_cc.record import record, replace
from enclave_cc.wire.rcar.uri import ResourcePath

_TAG, _VERSION = "tag.", "version."


@record
class _Metadata:
    """What Vault knows of a path: its own count of versions, and our custom metadata."""

    current: int
    versions: Mapping[int, Version]  # newest last; author and size are mirrored, if they are
    custom: Mapping[str, str]

    @property
    def present(self) -> bool:
        newest = self.versions.get(self.current)
        return newest is not None and newest.removed is None

    @property
    def tags(self) -> dict[str, str]:
        return {key.removeprefix(_TAG): value[1:] for key, value in self.custom.items() if key.startswith(_TAG)}

    @property
    def mirrored(self) -> bool:
        return f"{_VERSION}{self.current}" in self.custom


class VaultStore:
    """A `ResourceStore` on KV version 2. Safe for many threads, processes and machines."""

    def __init__(
        self,
        client: VaultClient,
        mount: str,
        path: str,
        locks: PathLocks,
        *,
        max_value: int = MAX_VALUE,
        deadline: float = 10.0,
        now: Callable[[], float] = time.time,
    ) -> None:
        """`deadline`: seconds that `put` may lose against other machines' writers. `locks` keep the mirrors of one
        machine's writers in order; versions are right without them."""
        self._client = client
        self._data, self._metadata = f"{mount}/data/{path}", f"{mount}/metadata/{path}"
        self._destroy = f"{mount}/destroy/{path}"
        self._locks = locks
        self._max_value = max_value
        self._deadline = deadline
        self._now = now

    def put(self, path: ResourcePath, value: Secret, *, author: str = "", tags: Tags | None = None) -> int:
        check_value(value, self._max_value)
        chosen = None if tags is None else apply_tags({}, tags)
        secret = {
            "value": base64.b64encode(value.reveal()).decode(),
            "size": len(value),
            "author": clip_author(author),
            "tags": chosen,
            "write": secrets.token_hex(8),
        }
        with self._locks.hold(str(path)):
            version = self._write(path, secret)
            self._mirror(path, version, secret)
        return version

    def _write(self, path: ResourcePath, secret: Mapping[str, Any]) -> int:
        end = time.monotonic() + self._deadline
        while True:
            # First what a killed writer left undone, or its tags would be lost under this version.
            found = self._heal(path, self._find(path))
            body = {"options": {"cas": found.current if found else 0}, "data": secret}
            answer = self._client.request("POST", f"{self._data}/{path}", body)
            if answer.status == 400 and answer.complains_of("check-and-set"):
                # Another writer was first. Or we were, and the answer was lost on its way.
                version = self._find_write(path, secret["write"])
                if version is not None:
                    return version
                if time.monotonic() >= end:
                    raise EnvironmentFault("deadline", f"other writers of {path} are always first")
                continue
            check(answer.status)
            return int(take(answer.data, "version", int))

    def _find_write(self, path: ResourcePath, write: str) -> int | None:
        answer = self._read(path, None)
        if answer.status != 200 or take(answer.data, "data", dict).get("write") != write:
            return None
        return int(take(take(answer.data, "metadata", dict), "version", int))

    def _mirror(self, path: ResourcePath, version: int, secret: Mapping[str, Any]) -> None:
        size, tags = secret.get("size"), secret.get("tags")
        size = size if type(size) is int else len(decode_value(secret))
        changes: dict[str, str | None] = {f"{_VERSION}{version}": _line(size, str(secret.get("author", "")))}
        found = self._find(path)
        for key in found.custom if found else ():
            number = key.removeprefix(_VERSION)
            outdated = number != key and number.isdecimal() and int(number) <= version - KEPT_VERSIONS
            if outdated or (tags is not None and key.startswith(_TAG)):
                changes[key] = None
        if isinstance(tags, Mapping):
            changes |= {f"{_TAG}{key}": f"={value}" for key, value in tags.items()}  # Vault takes no empty value
        self._patch(path, changes, max_versions=KEPT_VERSIONS)

    def get(self, path: ResourcePath, version: int | None = None) -> Resource:
        if version is not None and not 0 < version < 1 << 31:  # 0 would be the latest
            raise absent(path)
        answer = self._read(path, version)
        if answer.status == 404:
            raise absent(path)
        check(answer.status)
        metadata = take(answer.data, "metadata", dict)
        value = decode_value(take(answer.data, "data", dict))
        return Resource(path, take(metadata, "version", int), _seconds(take(metadata, "created_time", str)), Secret(value))

    def tag(self, path: ResourcePath, tags: Mapping[str, str | None], *, author: str = "") -> ResourceInfo:
        with self._locks.hold(str(path)):
            found = self._heal(path, self._find(path))
            if found is None or not found.present:
                raise absent(path)
            after = apply_tags(found.tags, tags)
            self._patch(path, {f"{_TAG}{key}": None if value is None else f"={value}" for key, value in tags.items()})
        return replace(_describe(path, found), tags=after)

    def delete(self, path: ResourcePath, *, author: str = "") -> None:
        with self._locks.hold(str(path)):
            found = self._find(path)
            if found is None or not found.present:
                raise absent(path)
            going = [number for number, each in found.versions.items() if each.removed is None]
            at, by = int(self._now()), clip_author(author)
            check(self._client.request("POST", f"{self._destroy}/{path}", {"versions": going}).status)
            changes: dict[str, str | None] = {key: None for key in found.custom if key.startswith(_TAG)}
            for number in going:
                each = found.versions[number]
                changes[f"{_VERSION}{number}"] = _line(each.size, each.author, at, by)
            self._patch(path, changes)

    def list(self, prefix: str = "", *, tags: Mapping[str, str | None] = NO_TAGS, after: str = "", limit: int = PAGE) -> Page:
        check_page(after, limit)
        found = list(islice(self._describe_all(prefix, after, tags), limit + 1))
        return Page(tuple(found[:limit]), str(found[limit - 1].path) if len(found) > limit else None)

    def _describe_all(self, prefix: str, after: str, tags: Mapping[str, str | None]) -> Iterator[ResourceInfo]:
        for name in walk(self._client, self._metadata, prefix, after):
            path = ResourcePath.parse(name)
            found = self._heal(path, self._find(path))
            if found is not None and found.present and match_tags(found.tags, tags):
                yield _describe(path, found)

    def history(self, path: ResourcePath) -> tuple[Version, ...]:
        found = self._heal(path, self._find(path))
        if found is None or not found.versions:
            raise absent(path)
        return tuple(reversed(list(found.versions.values())))[:KEPT_VERSIONS]

    def _heal(self, path: ResourcePath, found: _Metadata | None) -> _Metadata | None:
        """Mirrors the latest version's envelope if its writer did not come to it."""
        if found is None or not found.present or found.mirrored:
            return found
        answer = self._read(path, found.current)
        if answer.status != 200:
            return found  # destroyed in this moment
        secret = take(answer.data, "data", dict)
        if "value" not in secret:
            return found  # somebody else's; `get` says so
        self._mirror(path, found.current, secret)
        return self._find(path)

    def _read(self, path: ResourcePath, version: int | None) -> Answer:
        return self._client.request("GET", f"{self._data}/{path}", query=None if version is None else {"version": version})

    def _patch(self, path: ResourcePath, custom: Mapping[str, str | None], **members: Any) -> None:
        body = {**members, "custom_metadata": custom}
        check(self._client.request("PATCH", f"{self._metadata}/{path}", body, content_type=MERGE_PATCH).status)

    def _find(self, path: ResourcePath) -> _Metadata | None:
        answer = self._client.request("GET", f"{self._metadata}/{path}")
        if answer.status == 404:
            return None
        check(answer.status)
        custom = answer.data.get("custom_metadata") or {}
        if not isinstance(custom, Mapping) or not all(isinstance(value, str) for value in custom.values()):
            raise EnvironmentFault("store-failed", "Vault's custom metadata are not texts")
        versions = {}
        for number, each in take(answer.data, "versions", dict).items():
            if not number.isdecimal() or not isinstance(each, Mapping):
                raise EnvironmentFault("store-failed", "Vault's metadata count no versions")
            versions[int(number)] = self._parse_version(int(number), each, custom.get(f"{_VERSION}{number}"))
        return _Metadata(take(answer.data, "current_version", int), dict(sorted(versions.items())), custom)

    def _parse_version(self, number: int, document: Mapping[str, Any], line: str | None) -> Version:
        created = _seconds(take(document, "created_time", str))
        size, author, removed, removed_by = _parse_line(line)
        deletion = document.get("deletion_time") or ""
        if deletion and removed is None:
            removed = _seconds(str(deletion))
            removed = removed if removed <= self._now() else None  # it may lie ahead
        if document.get("destroyed") is True and removed is None:
            removed = created
        if document.get("destroyed") is not True and not deletion:
            removed, removed_by = None, ""
        return Version(number, created, size, author, removed, removed_by)


def _describe(path: ResourcePath, found: _Metadata) -> ResourceInfo:
    newest = found.versions[found.current]
    return ResourceInfo(path, newest.version, newest.created, newest.size, newest.author, found.tags)


def _line(size: int, author: str, removed: int | None = None, removed_by: str = "") -> str:
    return json.dumps([size, author, removed, removed_by], ensure_ascii=False, separators=(",", ":"))


def _parse_line(text: str | None) -> tuple[int, str, int | None, str]:
    try:
        size, author, removed, removed_by = json.loads(text or "")
    except (ValueError, TypeError, RecursionError):
        return 0, "", None, ""
    if type(size) is not int or type(author) is not str or type(removed) not in (int, type(None)) or type(removed_by) is not str:
        return 0, "", None, ""
    return size, author, removed, removed_by


def _seconds(text: str) -> int:
    """Unix seconds of an RFC 3339 time, whose fraction may have nine digits."""
    try:
        return int(datetime.fromisoformat(re.sub(r"\.\d+", "", text).replace("Z", "+00:00")).timestamp())
    except (ValueError, OverflowError) as error:
        raise EnvironmentFault("store-failed", "Vault's metadata have no time") from error
