"""Resources in the KBS database, each value sealed under the store key.

A head (last number given, present or not), a row for each version's history, the values, the tags: listing and history
read no value, and each call's cost depends on what it returns, not on what is stored.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping

from enclave_cc.crypto.secret import Secret
from enclave_cc.owner.resources.sealing import Keyring, Sealed
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
    can_be_tag,
    can_begin_path,
    check_page,
    check_value,
    clip_author,
)
from enclave_cc.owner.storage.database import Connection, Database, transact
from enclave_cc.wire.rcar.uri import ResourcePath

_END = "\x7f"  # behind every character of a path
_RESEALED = 100  # paths asked for at a time

_GET = (
    "SELECT v.version, v.created, v.key_id, r.nonce, r.value FROM resource_version AS v"
    " JOIN resource AS r ON r.path = v.path AND r.version = v.version"
)
_GET_LATEST = f"{_GET} JOIN resource_head AS h ON h.path = v.path AND h.last = v.version WHERE h.path = ? AND h.present = 1"
_GET_VERSION = f"{_GET} WHERE v.path = ? AND v.version = ? AND v.removed IS NULL"


class DatabaseResourceStore:
    """A `ResourceStore` on a `Database`. Safe for many threads, processes and machines."""

    def __init__(
        self, database: Database, keys: Keyring, *, max_value: int = MAX_VALUE, now: Callable[[], float] = time.time
    ) -> None:
        self._database = database
        self._keys = keys
        self._max_value = max_value
        self._now = now

    def put(self, path: ResourcePath, value: Secret, *, author: str = "", tags: Tags | None = None) -> int:
        check_value(value, self._max_value)
        name, at, who = str(path), int(self._now()), clip_author(author)
        chosen = None if tags is None else apply_tags({}, tags)

        def work(db: Connection) -> int:
            row = db.execute("SELECT last FROM resource_head WHERE path = ?", (name,)).fetchone()
            version = (int(row[0]) if row else 0) + 1
            sealed = self._keys.seal(name, version, value)
            db.execute(
                "INSERT INTO resource_head (path, last, present) VALUES (?, ?, 1)"
                " ON CONFLICT (path) DO UPDATE SET last = excluded.last, present = 1",
                (name, version),
            )
            db.execute(
                "INSERT INTO resource_version (path, version, created, size, author, removed_by, key_id)"
                " VALUES (?, ?, ?, ?, ?, '', ?)",
                (name, version, at, len(value), who, sealed.key_id),
            )
            db.execute(
                "INSERT INTO resource (path, version, created, nonce, value) VALUES (?, ?, ?, ?, ?)",
                (name, version, at, sealed.nonce, sealed.ciphertext),
            )
            if version > KEPT_VERSIONS:
                for table in ("resource", "resource_version"):
                    db.execute(f"DELETE FROM {table} WHERE path = ? AND version <= ?", (name, version - KEPT_VERSIONS))  # noqa: S608
            if chosen is not None:
                _set_tags(db, name, chosen)
            return version

        return transact(self._database, work, lock=_lock(name))

    def get(self, path: ResourcePath, version: int | None = None) -> Resource:
        name = str(path)
        if version is not None and not 0 < version < 1 << 63:
            raise absent(path)
        with self._database.read() as db:
            if version is None:
                row = db.execute(_GET_LATEST, (name,)).fetchone()
            else:
                row = db.execute(_GET_VERSION, (name, version)).fetchone()
        if row is None:
            raise absent(path)
        number, created, *sealed = row
        return Resource(path, number, created, self._keys.open(name, number, Sealed(*sealed)))

    def tag(self, path: ResourcePath, tags: Mapping[str, str | None], *, author: str = "") -> ResourceInfo:
        name = str(path)

        def work(db: Connection) -> ResourceInfo:
            found = _list(db, "h.path = ?", (name,), 1)
            if not found:
                raise absent(path)
            after = apply_tags(found[0].tags, tags)
            _set_tags(db, name, after)
            (info,) = _list(db, "h.path = ?", (name,), 1)
            return info

        return transact(self._database, work, lock=_lock(name))

    def delete(self, path: ResourcePath, *, author: str = "") -> None:
        name, at, who = str(path), int(self._now()), clip_author(author)

        def work(db: Connection) -> None:
            if db.execute("UPDATE resource_head SET present = 0 WHERE path = ? AND present = 1", (name,)).rowcount == 0:
                raise absent(path)
            db.execute(
                "UPDATE resource_version SET removed = ?, removed_by = ? WHERE path = ? AND removed IS NULL", (at, who, name)
            )
            db.execute("DELETE FROM resource WHERE path = ?", (name,))
            db.execute("DELETE FROM resource_tag WHERE path = ?", (name,))

        transact(self._database, work, lock=_lock(name))

    def list(self, prefix: str = "", *, tags: Mapping[str, str | None] = NO_TAGS, after: str = "", limit: int = PAGE) -> Page:
        check_page(after, limit)
        if not can_begin_path(prefix) or not all(can_be_tag(key, value) for key, value in tags.items()):
            return Page((), None)
        condition, parameters = "h.path >= ? AND h.path < ? AND h.path > ?", [prefix, prefix + _END, after]
        for key, value in tags.items():
            tagged = "SELECT path FROM resource_tag WHERE key = ?" + ("" if value is None else " AND value = ?")  # noqa: S608
            condition += f" AND h.path IN ({tagged})"
            parameters += [key] if value is None else [key, value]
        with self._database.read() as db:
            found = _list(db, condition, tuple(parameters), limit + 1)
        return Page(tuple(found[:limit]), str(found[limit - 1].path) if len(found) > limit else None)

    def history(self, path: ResourcePath) -> tuple[Version, ...]:
        with self._database.read() as db:
            rows = db.execute(
                "SELECT version, created, size, author, removed, removed_by FROM resource_version"
                " WHERE path = ? ORDER BY version DESC",
                (str(path),),
            ).fetchall()
        if not rows:
            raise absent(path)
        return tuple(Version(*row) for row in rows)

    def reseal(self) -> Iterator[int]:
        """Seals anew each value that is not under the first key; yields how many, path by path.

        Stopped at any point, it goes on where it was when called again."""
        after = ""
        while True:
            with self._database.read() as db:
                rows = db.execute(
                    "SELECT DISTINCT path FROM resource_version WHERE path > ? AND key_id <> ? AND removed IS NULL"
                    " ORDER BY path LIMIT ?",
                    (after, self._keys.active_id, _RESEALED),
                ).fetchall()
            for (name,) in rows:
                yield transact(self._database, lambda db, name=name: self._reseal(db, name), lock=_lock(name))  # type: ignore[misc]
            if len(rows) < _RESEALED:
                return
            after = rows[-1][0]

    def _reseal(self, db: Connection, name: str) -> int:
        rows = db.execute(f"{_GET} WHERE v.path = ? AND v.key_id <> ?", (name, self._keys.active_id)).fetchall()
        for version, _, *old in rows:
            new = self._keys.seal(name, version, self._keys.open(name, version, Sealed(*old)))
            where = (name, version)
            db.execute(
                "UPDATE resource SET nonce = ?, value = ? WHERE path = ? AND version = ?", (new.nonce, new.ciphertext, *where)
            )
            db.execute("UPDATE resource_version SET key_id = ? WHERE path = ? AND version = ?", (new.key_id, *where))
        return len(rows)


def _list(db: Connection, condition: str, parameters: tuple[object, ...], limit: int) -> list[ResourceInfo]:
    """Present paths `h` under a condition, sorted, with their tags: one statement, one state."""
    rows = db.execute(
        "SELECT p.path, p.version, p.created, p.size, p.author, t.key, t.value FROM"  # noqa: S608 (the condition is ours)
        " (SELECT h.path, v.version, v.created, v.size, v.author FROM resource_head AS h"
        "  JOIN resource_version AS v ON v.path = h.path AND v.version = h.last"
        f" WHERE h.present = 1 AND {condition} ORDER BY h.path LIMIT ?) AS p"
        " LEFT JOIN resource_tag AS t ON t.path = p.path ORDER BY p.path, t.key",
        (*parameters, limit),
    ).fetchall()
    found: dict[str, ResourceInfo] = {}
    tags: dict[str, dict[str, str]] = {}
    for name, version, created, size, author, key, value in rows:
        if name not in found:
            tags[name] = {}
            found[name] = ResourceInfo(ResourcePath.parse(name), version, created, size, author, tags[name])
        if key is not None:
            tags[name][key] = value
    return list(found.values())


def _set_tags(db: Connection, name: str, tags: Tags) -> None:
    db.execute("DELETE FROM resource_tag WHERE path = ?", (name,))
    for key, value in tags.items():
        db.execute("INSERT INTO resource_tag (path, key, value) VALUES (?, ?, ?)", (name, key, value))


def _lock(name: str) -> str:
    return f"resource {name}"
