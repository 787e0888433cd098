"""Policies in the KBS database: versioned, the newest version is the active one."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from enclave_cc.errors import UsageError, foreign
from enclave_cc.owner.policy import defaults
from enclave_cc.owner.policy.rego import Policy
from enclave_cc.owner.storage.database import Connection, Database, transact


class PolicyStore:
    """Safe for many threads."""

    def __init__(self, database: Database, *, now: Callable[[], float] = time.time) -> None:
        self._database = database
        self._now = now
        self._lock = threading.Lock()
        self._compiled: dict[str, Policy] = {}

    def install_defaults(self) -> None:
        """Sets each default policy that has no version yet."""
        for policy_id in (defaults.ATTESTATION_ID, defaults.RELEASE_ID):
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

        return transact(self._database, work, lock=f"policy {policy_id}")

    def get(self, policy_id: str) -> Policy:
        """The active version. Raises `UsageError("not-found")`."""
        with self._database.read() as db:
            row = db.execute("SELECT version, text FROM policy WHERE id = ? ORDER BY version DESC LIMIT 1", (policy_id,)).fetchone()
        if row is None:
            raise UsageError("not-found", f"there is no policy {foreign(policy_id)}")
        version, text = row
        with self._lock:
            compiled = self._compiled.get(policy_id)
        if compiled is None or compiled.version != version or compiled.text != text:
            compiled = Policy(policy_id, text, version)
            with self._lock:
                self._compiled[policy_id] = compiled
        return compiled

    def list(self) -> list[tuple[str, int]]:
        """(id, active version) of each policy."""
        with self._database.read() as db:
            return [tuple(row) for row in db.execute("SELECT id, max(version) FROM policy GROUP BY id ORDER BY id")]
