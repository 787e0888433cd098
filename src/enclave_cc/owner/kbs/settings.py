"""Reads tables of `kbs.toml` member by member, so that what nobody reads is refused: a mistyped setting must not
silently mean its default."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from enclave_cc.errors import UsageError


class Section:
    """One table. Every method raises `UsageError("bad-config")` that names file and setting."""

    def __init__(self, values: object, *, name: str, path: str) -> None:
        self._name = name
        self._path = path
        if not isinstance(values, Mapping):
            raise UsageError("bad-config", f"{path}: [{name}] is not a table")
        self._left = dict(values)

    def fault(self, name: str, what: str) -> UsageError:
        return UsageError("bad-config", f"{self._path}: [{self._name}] {name}: {what}")

    def text(self, name: str, default: str | None = None) -> str | None:
        value = self._left.pop(name, default)
        if value is not None and not isinstance(value, str):
            raise self.fault(name, "a text is needed")
        return value or None

    def number(self, name: str, default: float, *, low: float = 0, high: float = 1 << 53) -> float:
        """From `low` to `high`, both included."""
        value = self._left.pop(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise self.fault(name, f"a number from {low:g} to {high:g} is needed")
        return value

    def flag(self, name: str, default: bool) -> bool:
        value = self._left.pop(name, default)
        if not isinstance(value, bool):
            raise self.fault(name, "true or false is needed")
        return value

    def texts(self, name: str, default: tuple[str, ...] = ()) -> tuple[str, ...]:
        value = self._left.pop(name, list(default))
        if not isinstance(value, list) or not all(isinstance(item, str) and item for item in value):
            raise self.fault(name, "a list of texts is needed")
        return tuple(value)

    def sections(self, name: str) -> dict[str, Section]:
        """The tables in table `name`: `[this.name.one]`, `[this.name.two]`."""
        value = self._left.pop(name, {})
        if not isinstance(value, Mapping):
            raise self.fault(name, "a table is needed")
        return {key: Section(inner, name=f"{self._name}.{name}.{key}", path=self._path) for key, inner in value.items()}

    def inner(self, name: str, value: object) -> Section:
        """`value`, a member that was taken, as a table of its own."""
        return Section(value, name=f"{self._name}.{name}", path=self._path)

    def raw(self, name: str) -> Any:
        """The member as TOML gives it; None if it is not there."""
        return self._left.pop(name, None)

    def rest(self) -> list[tuple[str, Any]]:
        """Everything that is left, where the names are the owner's to choose."""
        left, self._left = list(self._left.items()), {}
        return left

    def finish(self) -> None:
        """Refuses what is left."""
        for name in self._left:
            raise self.fault(name, "there is no such setting")
