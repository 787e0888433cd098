"""A key type that does not print itself."""

from __future__ import annotations

import hmac
import os
from typing import NoReturn


class Secret:
    """Key bytes that never show in a repr, a log line, a pickle or an exception.

    Compared in constant time; unhashable, so that it cannot become a dict key by accident. `reveal` is the one
    door, easy to grep for.
    """

    __slots__ = ("_value",)
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, value: bytes | bytearray | memoryview) -> None:
        self._value = bytes(value)

    @classmethod
    def random(cls, size: int) -> Secret:
        """`size` bytes from the kernel's CSPRNG."""
        return cls(os.urandom(size))

    def reveal(self) -> bytes:
        return self._value

    def __len__(self) -> int:
        return len(self._value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and hmac.compare_digest(self._value, other._value)

    def __repr__(self) -> str:
        return f"Secret(<{len(self._value)} bytes>)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Secret is not pickled")

    def __format__(self, spec: str) -> str:
        return repr(self)
