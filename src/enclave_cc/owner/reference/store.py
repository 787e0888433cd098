"""Reference values in the KBS database."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from typing import Any

from enclave_cc.errors import UsageError, foreign
from enclave_cc.owner.reference.values import ReferenceValue, combine
from enclave_cc.owner.storage.database import Connection, Database
from enclave_cc.owner.storage.generations import Cache, Generations
from enclave_cc.wire.rcar import canonical

_TOPIC = "reference-value"


class ReferenceStore:
    """A `ReferenceSource` that can be changed. Safe for many threads."""

    def __init__(self, database: Database, *, generations: Generations | None = None, now: Callable[[], float] = time.time) -> None:
        self._database = database
        self._generations = generations or Generations(database)
        self._entries: Cache[list[ReferenceValue]] = Cache(self._generations, _TOPIC)
        self._now = now

    def add(self, values: Sequence[ReferenceValue]) -> None:
        """Adds each value to its name; one that is there already gets the new expiry and source. All or none."""

        def work(db: Connection) -> None:
            for value in values:
                if not value.member:
                    db.execute("DELETE FROM reference_value WHERE name = ?", (value.name,))
                _insert(db, value, int(self._now()))

        self._generations.change(_TOPIC, work)

    def replace(self, values: Sequence[ReferenceValue]) -> None:
        """As `add`, after everything under the same names is removed: what RVPS does with a message."""

        def work(db: Connection) -> None:
            for name in {value.name for value in values}:
                db.execute("DELETE FROM reference_value WHERE name = ?", (name,))
            for value in values:
                _insert(db, value, int(self._now()))

        self._generations.change(_TOPIC, work)

    def remove(self, name: str, value: Any = None) -> int:
        """Removes one value, or everything, under `name`; returns how many. Raises `UsageError("not-found")`."""

        def work(db: Connection) -> int:
            if value is None:
                count = db.execute("DELETE FROM reference_value WHERE name = ?", (name,)).rowcount
            else:
                text = canonical.encode(value).decode()
                count = db.execute("DELETE FROM reference_value WHERE name = ? AND value = ?", (name, text)).rowcount
            if not count:
                raise UsageError(
                    "not-found", f"there is no such reference value under {foreign(name)}", "See `enclave-cc refvals ls`."
                )
            return count

        return self._generations.change(_TOPIC, work)

    def query(self, name: str) -> Any:
        return combine(self.entries(name))

    def entries(self, name: str) -> list[ReferenceValue]:
        now = int(self._now())
        known = self._entries.get(name, lambda: self._load(name))
        return [entry for entry in known if entry.expires is None or entry.expires > now]

    def _load(self, name: str) -> list[ReferenceValue]:
        with self._database.read() as db:
            rows = db.execute(
                "SELECT name, value, member, expires, source FROM reference_value WHERE name = ? ORDER BY added, value", (name,)
            ).fetchall()
        return [_read(*row) for row in rows]

    def history(self, name: str) -> list[ReferenceValue]:
        return [value for value in self.list() if value.name == name]

    def list(self) -> list[ReferenceValue]:
        """Everything, expired values too."""
        with self._database.read() as db:
            rows = db.execute(
                "SELECT name, value, member, expires, source FROM reference_value ORDER BY name, added, value"
            ).fetchall()
        return [_read(*row) for row in rows]


def _insert(db: Connection, value: ReferenceValue, now: int) -> None:
    texts = [canonical.encode(part).decode() for part in (value.value, dict(value.source))]
    row = (value.name, texts[0], int(value.member), value.expires, now, texts[1])
    db.execute(
        "INSERT INTO reference_value (name, value, member, expires, added, source) VALUES (?, ?, ?, ?, ?, ?)"
        " ON CONFLICT (name, value) DO UPDATE SET member = excluded.member, expires = excluded.expires,"
        " added = excluded.added, source = excluded.source",
        row,
    )


def _read(name: str, value: str, member: int, expires: int | None, source: str) -> ReferenceValue:
    return ReferenceValue(name, json.loads(value), bool(member), expires, json.loads(source))
