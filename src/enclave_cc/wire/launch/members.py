"""JSON objects of a fixed shape, read strictly: each member once, of its type, none left over."""

from __future__ import annotations

import json
from typing import Any, NoReturn

from enclave_cc.errors import PeerError, foreign

DOCUMENT_LIMIT = 1 << 20  # bytes
_ITEM_LIMIT = 4096  # items of one list; Linux itself bounds arguments and environment at 2 MiB together


class Members:
    """One object's members; each accessor takes one away. `name` and `code` are for messages."""

    __slots__ = ("_code", "_members", "name")

    def __init__(self, value: object, name: str, *, code: str = "malformed") -> None:
        self.name, self._code = name, code
        if not isinstance(value, dict):
            self.fail("not an object")
        self._members: dict[str, Any] = dict(value)

    @classmethod
    def parse(cls, data: bytes, name: str, *, code: str = "malformed") -> Members:
        """Raises `PeerError(code)`."""
        if len(data) > DOCUMENT_LIMIT:
            raise PeerError(code, f"{name}: larger than {DOCUMENT_LIMIT} bytes")
        try:
            value = json.loads(data.decode("utf-8"), object_pairs_hook=_unique, parse_float=_refuse, parse_constant=_refuse)
        except (ValueError, RecursionError) as error:
            raise PeerError(code, f"{name}: not plain JSON") from error
        return cls(value, name, code=code)

    def fail(self, what: str) -> NoReturn:
        raise PeerError(self._code, f"{self.name}: {what}")

    def check_version(self, version: int) -> None:
        found = self._take("version", None)
        if type(found) is not int or found != version:
            self.fail(f"the version is not {version}")

    def names(self) -> list[str]:
        """What is left."""
        return list(self._members)

    def end(self) -> None:
        """Fails for members that nobody took."""
        if self._members:
            self.fail(f"unknown member {foreign(next(iter(self._members)))!r}")

    def text(self, member: str, default: str | None = None) -> str:
        return self._check_text(self._take(member, default), member)

    def optional_text(self, member: str) -> str | None:
        """A string, or None when absent or null."""
        value = self._members.pop(member, None)
        return None if value is None else self._check_text(value, member)

    def texts(self, member: str, *, optional: bool = False) -> tuple[str, ...]:
        """A list of strings; empty when absent and `optional`."""
        return tuple(self._check_text(item, member) for item in self.items(member, optional=optional))

    def optional_texts(self, member: str) -> tuple[str, ...] | None:
        """A list of strings, or None when absent or null."""
        if self._members.get(member) is None:
            self._members.pop(member, None)
            return None
        return self.texts(member)

    def flag(self, member: str, default: bool | None = None) -> bool:
        value = self._take(member, default)
        if not isinstance(value, bool):
            self.fail(f"{member} is not true or false")
        return value

    def number(self, member: str, low: int, high: int, default: int | None = None) -> int:
        value = self._take(member, default)
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            self.fail(f"{member} is not an integer from {low} to {high}")
        return value

    def items(self, member: str, *, optional: bool = False) -> list[Any]:
        value = self._take(member, [] if optional else None)
        if not isinstance(value, list) or len(value) > _ITEM_LIMIT:
            self.fail(f"{member} is not a list, or too long")
        return value

    def child(self, member: str, *, optional: bool = False) -> Members:
        return Members(self._take(member, {} if optional else None), f"{self.name}: {foreign(member)}", code=self._code)

    def children(self, member: str, *, optional: bool = False) -> list[Members]:
        return [Members(item, f"{self.name}: {member}", code=self._code) for item in self.items(member, optional=optional)]

    def _take(self, member: str, default: object) -> Any:
        if member in self._members:
            return self._members.pop(member)
        if default is None:
            self.fail(f"{member} is missing")
        return default

    def _check_text(self, value: object, member: str) -> str:
        if not isinstance(value, str) or "\0" in value:
            self.fail(f"{member} is not a string, or holds a NUL")
        try:
            value.encode()
        except UnicodeEncodeError:
            self.fail(f"{member} holds a lone surrogate")
        return value


def encode(document: dict[str, Any]) -> bytes:
    """The canonical form: sorted members, no spaces, UTF-8."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a member occurs twice")
    return members


def _refuse(text: str) -> NoReturn:
    raise ValueError(f"{text} is no integer")
