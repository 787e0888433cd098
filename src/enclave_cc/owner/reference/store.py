"""Reference values in the KBS database."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from typing import Any

from enclave_cc.errors import UsageError, foreign
from enclave_cc.owner.reference.values import ReferenceValue, combine
from enclave_cc.owner.storage.database import Connection, Database, transact
from enclave_cc.wire.rcar import canonical

_LOCK = "reference-value"


class ReferenceStore:
    """A `ReferenceSource` that can be changed. Safe for many threads."""

    def __init__(self, database: Database, *, now: Callable[[], float] = time.time) -> None:
        self._database = database
        self._now = now

    def add(self, values: Sequence[ReferenceValue]) -> None:
        """Adds each value to its name; one that is there already gets the new expiry and source. All or none."""

        def work(db: Connection) -> None:
            for value in values:
                if not value.member:
                    db.execute("DELETE FROM reference_value WHERE name = ?", (value.name,))
                _insert(db, value, int(self._now()))

        transact(self._database, work, lock=_LOCK)

    def replace(self, values: Sequence[ReferenceValue]) -> None:
        """As `add`, after everything under the same names is removed: what RVPS does with a message."""

        def work(db: Connection) -> None:
            for name in {value.name for value in values}:
                db.execute("DELETE FROM reference_value WHERE name = ?", (name,))
            for value in values:
                _insert(db, value, int(self._now()))

        transact(self._database, work, lock=_LOCK)

    def remove(self, name: str, value: Any = None) -> int:
        """Removes one value, or everything, under `name`; returns how many. Raises `UsageError("not-found")`."""
        with self._database.write(lock=_LOCK) as db:
            if value is None:
                count = db.execute("DELETE FROM reference_value WHERE name = ?", (name,)).rowcount
            else:
                text = canonical.encode(value).decode()
                count = db.execute("DELETE FROM reference_value WHERE name = ? AND value = ?", (name, text)).rowcount
            if not count:
                raise UsageError(
                    "not-found", f"there is no such reference value under {foreign(name)}", "See `enclave-cc refvals ls`."
                )
        return int(count)

    def query(self, name: str) -> Any:
        return combine(self.entries(name))

    def entries(self, name: str) -> list[ReferenceValue]:
        with self._database.read() as db:
            rows = db.execute(
                "SELECT name, value, member, expires, source FROM reference_value"
                " WHERE name = ? AND (expires IS NULL OR expires > ?) ORDER BY added, value",
                (name, int(self._now())),
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
