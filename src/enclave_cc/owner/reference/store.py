"""Reference values in the KBS database, and the keys of those who may sign statements about bundles.

A change of several values is one transaction. A retired value is kept: policies do not see it, and a denial can say that
and why it was retired. It comes back by `restore` alone, never by being added once more.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from enclave_cc.crypto.signature import PublicKey
from enclave_cc.errors import PeerError, UsageError, foreign
from enclave_cc.owner.reference.values import ACTIVE, ReferenceValue, Retirement, combine
from enclave_cc.owner.storage.database import Connection, Database
from enclave_cc.owner.storage.generations import Cache, Generations
from enclave_cc.record import record
from enclave_cc.wire.rcar import canonical

_TOPIC = "reference-value"
_COLUMNS = "name, value, member, expires, source, version, added, added_by, retired, retired_by, retired_why"
_LISTING = "See `enclave-cc refvals ls`."
MAX_REASON = 1024


@record
class Signer:
    """A builder's public key under the owner's name for it."""

    name: str
    key: PublicKey
    added: int
    added_by: str

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "key_id": self.key.key_id,
            "pem": self.key.to_pem().decode(),
            "added": self.added,
            "added_by": self.added_by,
        }


class ReferenceStore:
    """A `ReferenceSource` that can be changed. Safe for many threads and processes."""

    def __init__(self, database: Database, *, generations: Generations | None = None, now: Callable[[], float] = time.time) -> None:
        self._database = database
        self._generations = generations or Generations(database)
        self._entries: Cache[list[ReferenceValue]] = Cache(self._generations, _TOPIC)
        self._now = now

    def add(self, values: Sequence[ReferenceValue], *, by: str = "") -> None:
        """Adds each value to its name; one that is there already gets the new expiry and source. All or none.

        Raises `UsageError("wrong-state")` for a value that was retired."""

        def work(db: Connection) -> None:
            versions = _count_up(db, (value.name for value in values))
            for value in values:
                if not value.member:
                    db.execute("DELETE FROM reference_value WHERE name = ? AND retired IS NULL", (value.name,))
                _insert(db, value, versions[value.name], int(self._now()), by)

        self._generations.change(_TOPIC, work)

    def replace(self, values: Sequence[ReferenceValue], *, by: str = "") -> None:
        """As `add`, after everything under the same names is removed: what RVPS does with a message. Retired values stay."""

        def work(db: Connection) -> None:
            versions = _count_up(db, (value.name for value in values))
            for name in versions:
                db.execute("DELETE FROM reference_value WHERE name = ? AND retired IS NULL", (name,))
            for value in values:
                _insert(db, value, versions[value.name], int(self._now()), by)

        self._generations.change(_TOPIC, work)

    def remove(self, name: str, value: Any = None) -> int:
        """Removes one value, or everything, under `name`; returns how many. Raises `UsageError("not-found")`."""

        def work(db: Connection) -> int:
            where, parameters = _choose(name, value)
            count = db.execute(f"DELETE FROM reference_value WHERE {where}", parameters).rowcount  # noqa: S608 (our names)
            if not count:
                raise _absent(name)
            _count_up(db, (name,))
            return int(count)

        return self._generations.change(_TOPIC, work)

    def retire(self, name: str, value: Any = None, *, by: str = "", reason: str = "") -> int:
        """Retires one value, or every one, under `name`; returns how many. Raises `UsageError`: "not-found", or
        "wrong-state" when all of them are retired already."""
        if len(reason) > MAX_REASON:
            raise UsageError("too-large", f"a reason has at most {MAX_REASON} characters")

        def work(db: Connection) -> int:
            where, parameters = _choose(name, value)
            if db.execute(f"SELECT 1 FROM reference_value WHERE {where}", parameters).fetchone() is None:  # noqa: S608 (our names)
                raise _absent(name)
            count = db.execute(
                f"UPDATE reference_value SET retired = ?, retired_by = ?, retired_why = ? WHERE {where} AND retired IS NULL",  # noqa: S608 (our names)
                (int(self._now()), by, reason, *parameters),
            ).rowcount
            if not count:
                raise UsageError("wrong-state", f"this value of {foreign(name)} is retired already", _LISTING)
            _count_up(db, (name,))
            return int(count)

        return self._generations.change(_TOPIC, work)

    def restore(self, name: str, value: Any = None) -> int:
        """Takes one retired value, or every one, under `name` back; returns how many. Raises `UsageError`: "not-found", or
        "wrong-state" when none of them is retired."""

        def work(db: Connection) -> int:
            where, parameters = _choose(name, value)
            if db.execute(f"SELECT 1 FROM reference_value WHERE {where}", parameters).fetchone() is None:  # noqa: S608 (our names)
                raise _absent(name)
            count = db.execute(
                f"UPDATE reference_value SET retired = NULL, retired_by = NULL, retired_why = NULL"  # noqa: S608 (our names)
                f" WHERE {where} AND retired IS NOT NULL",
                parameters,
            ).rowcount
            if not count:
                raise UsageError("wrong-state", f"this value of {foreign(name)} is not retired", _LISTING)
            _count_up(db, (name,))
            return int(count)

        return self._generations.change(_TOPIC, work)

    def query(self, name: str) -> Any:
        return combine(self.entries(name))

    def entries(self, name: str) -> list[ReferenceValue]:
        now = self._now()
        return [value for value in self.history(name) if value.state(now) == ACTIVE]

    def history(self, name: str) -> list[ReferenceValue]:
        return self._entries.get(name, lambda: self._load(name))

    def _load(self, name: str) -> list[ReferenceValue]:
        with self._database.read() as db:
            rows = db.execute(f"SELECT {_COLUMNS} FROM reference_value WHERE name = ? ORDER BY added, value", (name,)).fetchall()  # noqa: S608 (our names)
        return [_read(row) for row in rows]

    def list(self) -> list[ReferenceValue]:
        """Everything, expired and retired values too."""
        with self._database.read() as db:
            rows = db.execute(f"SELECT {_COLUMNS} FROM reference_value ORDER BY name, added, value").fetchall()  # noqa: S608 (our names)
        return [_read(row) for row in rows]

    # who may sign statements

    def add_signer(self, name: str, key: PublicKey, *, by: str = "") -> None:
        """Names a builder's key; the same again changes nothing. Raises `UsageError("already-exists")` for a name of
        another key, or a key of another name."""

        def work(db: Connection) -> None:
            row = db.execute(
                "SELECT name, key_id FROM reference_signer WHERE name = ? OR key_id = ?", (name, key.key_id)
            ).fetchone()
            if row is not None:
                if tuple(row) == (name, key.key_id):
                    return
                raise UsageError("already-exists", f"{foreign(row[0])} names a key already: {row[1][:16]}", "See `refvals key ls`.")
            db.execute(
                "INSERT INTO reference_signer (name, key_id, pem, added, added_by) VALUES (?, ?, ?, ?, ?)",
                (name, key.key_id, key.to_pem().decode(), int(self._now()), by),
            )

        self._generations.change(_TOPIC, work)

    def remove_signer(self, name: str) -> None:
        """What the key signed before stays. Raises `UsageError("not-found")`."""
        with self._database.write() as db:
            if not db.execute("DELETE FROM reference_signer WHERE name = ?", (name,)).rowcount:
                raise UsageError("not-found", f"there is no builder's key {foreign(name)}", "See `enclave-cc refvals key ls`.")

    def list_signers(self) -> Sequence[Signer]:
        with self._database.read() as db:
            rows = db.execute("SELECT name, pem, added, added_by FROM reference_signer ORDER BY name").fetchall()
        return [Signer(name, PublicKey.from_pem(pem.encode()), added, by) for name, pem, added, by in rows]


def _choose(name: str, value: Any) -> tuple[str, tuple[object, ...]]:
    if value is None:
        return "name = ?", (name,)
    try:
        return "name = ? AND value = ?", (name, canonical.encode(value).decode())
    except (ValueError, UnicodeEncodeError) as error:
        raise PeerError("malformed", "this is no value that could be stored") from error


def _absent(name: str) -> UsageError:
    return UsageError("not-found", f"there is no such reference value under {foreign(name)}", _LISTING)


def _count_up(db: Connection, names: Iterable[str]) -> dict[str, int]:
    """The version of each name after this change."""
    return {
        name: int(
            db.execute(
                "INSERT INTO reference_name (name, version) VALUES (?, 1)"
                " ON CONFLICT (name) DO UPDATE SET version = reference_name.version + 1 RETURNING version",
                (name,),
            ).fetchone()[0]
        )
        for name in sorted(set(names))
    }


def _insert(db: Connection, value: ReferenceValue, version: int, now: int, by: str) -> None:
    texts = [canonical.encode(part).decode() for part in (value.value, dict(value.source))]
    gone = db.execute(
        "SELECT retired_by, retired_why FROM reference_value WHERE name = ? AND value = ? AND retired IS NOT NULL",
        (value.name, texts[0]),
    ).fetchone()
    if gone is not None:
        raise UsageError(
            "wrong-state",
            f"this value of {value.name} was retired by {foreign(gone[0])}: {foreign(gone[1]) or 'no reason given'}",
            "Take it back with `enclave-cc refvals restore`, if it is meant.",
        )
    db.execute(
        "INSERT INTO reference_value (name, value, member, expires, added, source, version, added_by)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
        " ON CONFLICT (name, value) DO UPDATE SET member = excluded.member, expires = excluded.expires,"
        " added = excluded.added, source = excluded.source, version = excluded.version, added_by = excluded.added_by",
        (value.name, texts[0], int(value.member), value.expires, now, texts[1], version, by),
    )


def _read(row: Sequence[Any]) -> ReferenceValue:
    name, value, member, expires, source, version, added, added_by, retired, retired_by, retired_why = row
    return ReferenceValue(
        name,
        json.loads(value),
        bool(member),
        expires,
        json.loads(source),
        version,
        added,
        added_by,
        None if retired is None else Retirement(retired, retired_by or "", retired_why or ""),
    )
