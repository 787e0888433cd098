"""Policies in the KBS database: versioned, the newest version is the active one."""

from __future__ import annotations

import time
from collections.abc import Callable

from enclave_cc.errors import UsageError, foreign
from enclave_cc.owner.policy import defaults
from enclave_cc.owner.policy.rego import Policy
from enclave_cc.owner.storage.database import Connection, Database
from enclave_cc.owner.storage.generations import Cache, Generations

_TOPIC = "policy"


class PolicyStore:
    """Safe for many threads."""

    def __init__(self, database: Database, *, generations: Generations | None = None, now: Callable[[], float] = time.time) -> None:
        self._database = database
        self._generations = generations or Generations(database)
        self._now = now
        self._compiled: Cache[Policy] = Cache(self._generations, _TOPIC)

    def install_defaults(self) -> None:
        """Sets each default policy that has no version yet."""
        for policy_id in (defaults.ATTESTATION_ID, defaults.RELEASE_ID):
            with self._database.read() as db:
                present = db.execute("SELECT 1 FROM policy WHERE id = ?", (policy_id,)).fetchone()
            if present is None:
                self._write(policy_id, defaults.read_default(policy_id), only_first=True)

    def set(self, policy_id: str, text: str) -> Policy:
        """Compiles `text` and makes it the active version. Raises `UsageError("policy-invalid")`, changing nothing."""
        Policy(policy_id, text)
        return Policy(policy_id, text, self._write(policy_id, text))

    def _write(self, policy_id: str, text: str, *, only_first: bool = False) -> int:
        def work(db: Connection) -> int:
            row = db.execute("SELECT max(version) FROM policy WHERE id = ?", (policy_id,)).fetchone()
            version = int(row[0] or 0)
            if only_first and version:
                return version
            db.execute("INSERT INTO policy VALUES (?, ?, ?, ?)", (policy_id, version + 1, int(self._now()), text))
            return version + 1

        return self._generations.change(_TOPIC, work)

    def get(self, policy_id: str) -> Policy:
        """The active version. Raises `UsageError("not-found")`."""
        return self._compiled.get(policy_id, lambda: self._load(policy_id))

    def _load(self, policy_id: str) -> Policy:
        with self._database.read() as db:
            row = db.execute("SELECT version, text FROM policy WHERE id = ? ORDER BY version DESC LIMIT 1", (policy_id,)).fetchone()
        if row is None:
            raise UsageError("not-found", f"there is no policy {foreign(policy_id)}")
        version, text = row
        return Policy(policy_id, text, version)

    def list(self) -> list[tuple[str, int]]:
        """(id, active version) of each policy."""
        with self._database.read() as db:
            return [tuple(row) for row in db.execute("SELECT id, max(version) FROM policy GROUP BY id ORDER BY id")]
