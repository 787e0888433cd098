"""Objects in a KV version 1 engine of Vault or OpenBao.

    MOUNT/PATH/REPOSITORY/TYPE/TAG               {"head": ...}       what is known of the path
    MOUNT/PATH/.values/REPOSITORY/TYPE/TAG/3     {"value": base64}   the value of version 3

KV version 1 has no check-and-set. Writers of one machine take turns on locks; two KBS machines that write one path at
the same moment may lose a version here, which version 2 does not allow.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any

from enclave_cc.errors import EnvironmentFault, PeerError
from enclave_cc.owner.resources.locks import PathLocks
from enclave_cc.owner.resources.vault_client import VaultClient, take
from enclave_cc.wire.rcar.uri import ResourcePath

_LIST = 1000
_MOST = 10_000_000  # names on one level
_END = "\x7f"  # behind every character of a path


class VaultObjects:
    """An `ObjectStore` on KV version 1. `base` is MOUNT/PATH."""

    def __init__(self, client: VaultClient, base: str, locks: PathLocks) -> None:
        self._client = client
        self._base = base
        self._locks = locks

    def lock(self, name: str) -> AbstractContextManager[None]:
        return self._locks.hold(name)

    def read_head(self, name: str) -> bytes | None:
        found = self._read(name)
        return None if found is None else str(take(found, "head", str)).encode()

    def write_head(self, name: str, data: bytes) -> None:
        self._write(name, {"head": data.decode()})

    def read_value(self, name: str, version: int) -> bytes | None:
        found = self._read(f".values/{name}/{version}")
        return None if found is None else decode_value(found)

    def write_value(self, name: str, version: int, data: bytes) -> None:
        self._write(f".values/{name}/{version}", {"value": base64.b64encode(data).decode()})

    def remove_value(self, name: str, version: int) -> None:
        check(self._client.request("DELETE", f"{self._base}/.values/{name}/{version}").status, allowed=(200, 204, 404))

    def list_names(self, prefix: str, after: str) -> Iterator[str]:
        return walk(self._client, self._base, prefix, after)

    def _read(self, path: str) -> Mapping[str, Any] | None:
        answer = self._client.request("GET", f"{self._base}/{path}")
        if answer.status == 404:
            return None
        check(answer.status)
        return answer.data

    def _write(self, path: str, data: Mapping[str, Any]) -> None:
        check(self._client.request("POST", f"{self._base}/{path}", data).status)


def walk(client: VaultClient, base: str, prefix: str, after: str, name: str = "") -> Iterator[str]:
    """Resource paths below `base` that begin with `prefix` and come behind `after`, sorted; others' secrets are left out."""
    depth = name.count("/")
    for key in _list_keys(client, f"{base}/{name}".rstrip("/")):
        full = name + key
        # What is no segment of a resource path is another's, or would lead elsewhere: `..` in a URL is not a name.
        if (
            key.endswith("/") != (depth < 2)
            or not _is_segment(key.removesuffix("/"))
            or (not full.startswith(prefix) and not prefix.startswith(full))
        ):
            continue
        if depth < 2:
            if full + _END > after:
                yield from walk(client, base, prefix, after, full)
        elif full > after and full.startswith(prefix):
            yield full


def _list_keys(client: VaultClient, path: str) -> Iterator[str]:
    """One level, sorted. OpenBao gives it in parts; Vault does not know how, and gives all."""
    last, seen = "", 0
    while True:
        query: dict[str, str | int] = {"list": "true", "limit": _LIST}
        answer = client.request("GET", path, query=query | ({"after": last} if last else {}))
        if answer.status == 404:
            return
        check(answer.status)
        keys = take(answer.data, "keys", list)
        new = sorted(key for key in keys if isinstance(key, str) and key > last)
        yield from new
        seen += len(new)
        if len(keys) != _LIST or not new:
            return
        if seen > _MOST:
            raise EnvironmentFault("store-failed", "Vault's listing has no end")
        last = new[-1]


def _is_segment(text: str) -> bool:
    try:
        ResourcePath(text, text, text)
    except PeerError:
        return False
    return True


def decode_value(secret: Mapping[str, Any]) -> bytes:
    """Raises `EnvironmentFault("store-failed")` for a secret that is none of ours."""
    try:
        return base64.b64decode(take(secret, "value", str), validate=True)
    except (binascii.Error, ValueError) as error:
        raise EnvironmentFault("store-failed", "a secret's value is not base64") from error


def check(status: int, *, allowed: tuple[int, ...] = (200, 204)) -> None:
    if status not in allowed:
        raise EnvironmentFault(
            "store-failed",
            f"Vault refuses the request with status {status}",
            "Check that the mount is a KV engine of the version that the configuration says.",
        )
