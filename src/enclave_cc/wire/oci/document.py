"""JSON documents of a registry or an owner, read strictly.

Readers that disagree about a document are how one party signs A and another runs B (CVE-2021-41190): duplicate
members, numbers that are not finite, deep nesting and members of another type than the specification gives are
refused here, once for all formats of this package.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from enclave_cc.errors import PeerError, foreign

MANIFEST_LIMIT = 4 << 20  # bytes; distribution-spec: registries should take 4 MiB, clients should bound
_TEXT_LIMIT = 1 << 20  # characters in one string; the longest honest one is an encryption annotation
_MEMBER_LIMIT = 4096  # members of one object, items of one list


class Document:
    """One JSON object; each accessor checks the type of what it hands out. `name` is for messages only."""

    __slots__ = ("_members", "name")

    def __init__(self, members: Mapping[str, Any], name: str) -> None:
        self._members = members
        self.name = name

    @classmethod
    def parse(cls, data: bytes, name: str, *, limit: int = MANIFEST_LIMIT) -> Document:
        """Reads `data` (UTF-8 JSON, an object at its top, at most `limit` bytes). Raises `PeerError("malformed")`."""
        if len(data) > limit:
            raise PeerError("malformed", f"{name} is larger than {limit} bytes")
        try:
            value = json.loads(data.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as error:  # JSONDecodeError, UnicodeDecodeError and ours are ValueErrors
            raise PeerError("malformed", f"{name} is not plain JSON: {foreign(error)}") from error
        if not isinstance(value, dict):
            raise PeerError("malformed", f"{name} is not a JSON object")
        return cls(value, name)

    def fail(self, what: str) -> NoReturn:
        raise PeerError("malformed", f"{self.name}: {what}")

    def has(self, member: str) -> bool:
        """Whether the member is there and not null."""
        return self._members.get(member) is not None

    def members(self) -> Sequence[str]:
        return list(self._members)

    def text(self, member: str, default: str | None = None) -> str:
        """A string; `default` (if given) when absent or null."""
        value = self._members.get(member)
        if value is None and default is not None:
            return default
        return self._check_text(value, member)

    def number(self, member: str, default: int | None = None) -> int:
        """An integer in 0..2**63-1."""
        value = self._members.get(member)
        if value is None and default is not None:
            return default
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 63:
            self.fail(f"{member} is not a number of bytes or items")
        return value

    def raw_bytes(self, member: str, *, size: int | None = None) -> bytes:
        """Standard base64 with padding, decoded; `size` bytes if given."""
        value = decode_base64(self.text(member), f"{self.name}: {member}")
        if size is not None and len(value) != size:
            self.fail(f"{member} is not {size} bytes long")
        return value

    def document(self, member: str) -> Document:
        """An object; empty when absent or null."""
        value = self._members.get(member)
        if value is None:
            value = {}
        if not isinstance(value, dict) or len(value) > _MEMBER_LIMIT:
            self.fail(f"{member} is not an object")
        return Document(value, f"{self.name}: {member}")

    def documents(self, member: str) -> list[Document]:
        """A list of objects; empty when absent or null."""
        name = f"{self.name}: {member}"
        values = self._list(member)
        if not all(isinstance(value, dict) for value in values):
            self.fail(f"{member} holds something else than objects")
        return [Document(value, name) for value in values]

    def texts(self, member: str) -> tuple[str, ...]:
        """A list of strings; empty when absent or null."""
        return tuple(self._check_text(value, member) for value in self._list(member))

    def text_map(self, member: str) -> dict[str, str]:
        """An object whose values are strings; empty when absent or null."""
        value = self._members.get(member)
        if value is None:
            return {}
        if not isinstance(value, dict) or len(value) > _MEMBER_LIMIT:
            self.fail(f"{member} is not an object")
        return {self._check_text(key, member): self._check_text(item, member) for key, item in value.items()}

    def _list(self, member: str) -> list[Any]:
        value = self._members.get(member)
        if value is None:
            return []
        if not isinstance(value, list) or len(value) > _MEMBER_LIMIT:
            self.fail(f"{member} is not a list")
        return value

    def _check_text(self, value: object, member: str) -> str:
        if not isinstance(value, str) or len(value) > _TEXT_LIMIT:
            self.fail(f"{member} is not a string")
        try:
            value.encode()
        except UnicodeEncodeError:
            self.fail(f"{member} holds a lone surrogate")
        return value


def decode_base64(text: str, name: str) -> bytes:
    """Standard base64 with padding, nothing else in it. Raises `PeerError("malformed")`."""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise PeerError("malformed", f"{name} is not base64") from error


def encode_json(value: object) -> bytes:
    """Compact JSON with sorted members: the same value gives the same bytes, hence the same digest."""
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a member occurs twice")
    return members


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
