"""Policies in the KBS database: every version is kept, and which one is active is another matter.

    default_cpu, default_gpu, ...     attestation, by TEE class
    resource-policy                   release, for every path without one of its own
    resource-policy/REPO[/TYPE[/TAG]] release, for the paths below; the most specific one decides

Which versions are active is kept, until another process changes it (`storage.generations`), and so is what is compiled.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any

from enclave_cc.errors import UsageError, foreign
from enclave_cc.owner.policy import defaults
from enclave_cc.owner.policy.rego import Policy
from enclave_cc.owner.storage.database import Connection, Database
from enclave_cc.owner.storage.generations import Cache, Generations
from enclave_cc.record import record

_TOPIC = "policy"
_NEWEST = "SELECT max(version) FROM policy WHERE id = ?"
_SEGMENT = r"[A-Za-z0-9_-][A-Za-z0-9_.-]*"
_ID = re.compile(rf"[A-Za-z0-9_-]{{1,64}}\Z|{defaults.RELEASE_ID}(?:/{_SEGMENT}){{1,3}}\Z")
MAX_ID = 1024
MAX_NOTE = 1024


@record
class PolicyState:
    """One policy in a listing. `version` is the active one, None when it has drafts only; times in Unix seconds."""

    id: str
    version: int | None
    newest: int
    at: int | None
    actor: str

    def to_json(self) -> dict[str, Any]:
        return {"id": self.id, "version": self.version, "newest": self.newest, "activated": self.at, "activated_by": self.actor}


@record
class PolicyVersion:
    """One version in a policy's history. `activations`: when it became active, and by whom."""

    version: int
    created: int
    author: str
    note: str
    digest: str
    active: bool
    activations: tuple[tuple[int, str], ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "version": self.version,
            "created": self.created,
            "author": self.author,
            "note": self.note,
            "digest": self.digest,
            "active": self.active,
            "activations": [{"at": at, "by": by} for at, by in self.activations],
        }


class PolicyStore:
    """Safe for many threads and processes."""

    def __init__(self, database: Database, *, generations: Generations | None = None, now: Callable[[], float] = time.time) -> None:
        self._database = database
        self._generations = generations or Generations(database)
        self._now = now
        self._active: Cache[Mapping[str, int]] = Cache(self._generations, _TOPIC)
        self._compiled: Cache[Policy] = Cache(self._generations, _TOPIC)

    def install_defaults(self) -> None:
        """Sets each default policy that has no version yet."""
        for policy_id in (defaults.ATTESTATION_ID, defaults.RELEASE_ID):
            with self._database.read() as db:
                if db.execute(_NEWEST, (policy_id,)).fetchone()[0] is not None:
                    continue
            text = defaults.read_default(policy_id)

            def work(db: Connection, policy_id: str = policy_id, text: str = text) -> None:
                if db.execute(_NEWEST, (policy_id,)).fetchone()[0] is None:
                    self._activate(db, policy_id, self._insert(db, policy_id, text, "enclave-cc", "the default"), "enclave-cc")

            self._generations.change(_TOPIC, work)

    def add(self, policy_id: str, text: str, *, by: str = "", note: str = "") -> Policy:
        """Compiles `text` and keeps it as a draft: a version that is not active.

        Raises `UsageError`: "policy-invalid", or "usage" for an id of another form; nothing is changed."""
        return self._write(policy_id, text, by, note, activate=False)

    def set(self, policy_id: str, text: str, *, by: str = "", note: str = "") -> Policy:
        """As `add`, and makes it the active version at once."""
        return self._write(policy_id, text, by, note, activate=True)

    def _write(self, policy_id: str, text: str, by: str, note: str, *, activate: bool) -> Policy:
        check_id(policy_id)
        if len(note) > MAX_NOTE:
            raise UsageError("too-large", f"a note has at most {MAX_NOTE} characters")
        Policy(policy_id, text)

        def work(db: Connection) -> int:
            version = self._insert(db, policy_id, text, by, note)
            if activate:
                self._activate(db, policy_id, version, by)
            return version

        return Policy(policy_id, text, self._generations.change(_TOPIC, work))

    def _insert(self, db: Connection, policy_id: str, text: str, by: str, note: str) -> int:
        version = int(db.execute(_NEWEST, (policy_id,)).fetchone()[0] or 0) + 1
        db.execute(
            "INSERT INTO policy (id, version, created, text, author, note) VALUES (?, ?, ?, ?, ?, ?)",
            (policy_id, version, int(self._now()), text, by, note),
        )
        return version

    def _activate(self, db: Connection, policy_id: str, version: int | None, by: str) -> None:
        if version is None:
            db.execute("DELETE FROM policy_active WHERE id = ?", (policy_id,))
        else:
            db.execute(
                "INSERT INTO policy_active (id, version, at, actor) VALUES (?, ?, ?, ?) ON CONFLICT (id)"
                " DO UPDATE SET version = excluded.version, at = excluded.at, actor = excluded.actor",
                (policy_id, version, int(self._now()), by),
            )
        db.execute(
            "INSERT INTO policy_activation (id, version, at, actor) VALUES (?, ?, ?, ?)", (policy_id, version, int(self._now()), by)
        )

    def activate(self, wanted: Mapping[str, int | None], *, by: str = "") -> dict[str, int]:
        """Makes a version of each policy the active one, all at once or none; None stands for the newest. Returns the
        versions. Raises `UsageError("not-found")`."""

        def work(db: Connection) -> dict[str, int]:
            chosen = {}
            for policy_id, version in sorted(wanted.items()):
                row = db.execute(
                    "SELECT max(version) FROM policy WHERE id = ? AND (CAST(? AS INTEGER) IS NULL OR version = ?)",
                    (policy_id, version, version),
                ).fetchone()
                if row[0] is None:
                    raise _absent(policy_id, version)
                chosen[policy_id] = int(row[0])
                self._activate(db, policy_id, chosen[policy_id], by)
            return chosen

        return self._generations.change(_TOPIC, work)

    def roll_back(self, policy_id: str, *, by: str = "") -> int:
        """Takes the last switch back: activates the version that was active before the present one, and returns it. Twice
        is where it began. Raises `UsageError`: "not-found", or "wrong-state" when there was no other."""

        def work(db: Connection) -> int:
            present = db.execute("SELECT version FROM policy_active WHERE id = ?", (policy_id,)).fetchone()
            if present is None:
                raise _absent(policy_id)
            row = db.execute(
                "SELECT version FROM policy_activation WHERE id = ? AND version IS NOT NULL AND version <> ?"
                " ORDER BY number DESC LIMIT 1",
                (policy_id, present[0]),
            ).fetchone()
            if row is None:
                raise UsageError("wrong-state", f"{foreign(policy_id)} had no other version", "See `enclave-cc policy history`.")
            self._activate(db, policy_id, int(row[0]), by)
            return int(row[0])

        return self._generations.change(_TOPIC, work)

    def deactivate(self, policy_id: str, *, by: str = "") -> None:
        """Ends a path's own policy: a less specific one decides again. Raises `UsageError`: "not-found", or "usage" for a
        policy that must be there."""
        if policy_id in (defaults.ATTESTATION_ID, defaults.RELEASE_ID):
            raise UsageError("usage", f"without {policy_id} nothing could be judged", "Activate another version instead.")

        def work(db: Connection) -> None:
            if db.execute("SELECT 1 FROM policy_active WHERE id = ?", (policy_id,)).fetchone() is None:
                raise _absent(policy_id)
            self._activate(db, policy_id, None, by)

        self._generations.change(_TOPIC, work)

    def get(self, policy_id: str, version: int | None = None) -> Policy:
        """The active version, or the one named. Raises `UsageError("not-found")`."""
        chosen = version or self._list_active().get(policy_id)
        if chosen is None:
            raise _absent(policy_id)
        return self._compiled.get((policy_id, chosen), lambda: self._load(policy_id, chosen))

    def find_release(self, segments: Sequence[str]) -> Policy:
        """The active release policy of a path: the most specific one. Raises `UsageError("not-found")`."""
        return self.get(find_most_specific(self._list_active(), segments))

    def snapshot(self) -> dict[str, Policy]:
        """The active version of every policy."""
        return {policy_id: self.get(policy_id, version) for policy_id, version in self._list_active().items()}

    def _list_active(self) -> Mapping[str, int]:
        """The active version of each policy that has one."""

        def load() -> Mapping[str, int]:
            with self._database.read() as db:
                return {name: int(version) for name, version in db.execute("SELECT id, version FROM policy_active").fetchall()}

        return self._active.get("all", load)

    def _load(self, policy_id: str, version: int) -> Policy:
        with self._database.read() as db:
            row = db.execute("SELECT text FROM policy WHERE id = ? AND version = ?", (policy_id, version)).fetchone()
        if row is None:
            raise _absent(policy_id, version)
        return Policy(policy_id, row[0], version)

    def list(self) -> list[PolicyState]:
        """Every policy, those with drafts only too, sorted by id."""
        with self._database.read() as db:
            rows = db.execute(
                "SELECT p.id, a.version, p.newest, a.at, a.actor"
                " FROM (SELECT id, max(version) AS newest FROM policy GROUP BY id) AS p"
                " LEFT JOIN policy_active AS a ON a.id = p.id ORDER BY p.id"
            ).fetchall()
        return [PolicyState(row[0], row[1], row[2], row[3], row[4] or "") for row in rows]

    def history(self, policy_id: str) -> Sequence[PolicyVersion]:
        """The newest version first. Raises `UsageError("not-found")`."""
        with self._database.read() as db:
            rows = db.execute(
                "SELECT version, created, author, note, text FROM policy WHERE id = ? ORDER BY version DESC", (policy_id,)
            ).fetchall()
            active = db.execute("SELECT version FROM policy_active WHERE id = ?", (policy_id,)).fetchone()
            activations = db.execute(
                "SELECT version, at, actor FROM policy_activation WHERE id = ? ORDER BY number", (policy_id,)
            ).fetchall()
        if not rows:
            raise _absent(policy_id)
        return [
            PolicyVersion(
                version,
                created,
                author,
                note,
                Policy.digest_of(text),
                active is not None and active[0] == version,
                tuple((at, by) for which, at, by in activations if which == version),
            )
            for version, created, author, note, text in rows
        ]


def find_most_specific(active: Container[str], segments: Sequence[str]) -> str:
    """The id of the release policy that decides about a path, of those that are active."""
    found = name = defaults.RELEASE_ID
    for segment in segments[:3]:
        name = f"{name}/{segment}"
        if name in active:
            found = name
    return found


def check_id(policy_id: str) -> None:
    """Raises `UsageError("usage")` for what cannot be a policy's id."""
    if len(policy_id) > MAX_ID or _ID.match(policy_id) is None:
        raise UsageError(
            "usage",
            f"{foreign(policy_id)!r} cannot be the id of a policy",
            f"Attestation policies are named default_CLASS, release policies {defaults.RELEASE_ID}[/REPO[/TYPE[/TAG]]].",
        )


def _absent(policy_id: str, version: int | None = None) -> UsageError:
    what = f"policy {foreign(policy_id)}" + ("" if version is None else f" version {version}")
    return UsageError("not-found", f"there is no {what}", "See `enclave-cc policy ls`.")
