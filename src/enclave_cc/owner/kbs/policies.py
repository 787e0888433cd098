"""Policies in the KBS database: versioned, the newest version is the active one."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from enclave_cc.errors import UsageError, foreign
from enclave_cc.owner.policy import defaults
from enclave_cc.owner.policy.rego import Policy
from enclave_cc.owner.resources.database import Database


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
            with self._database.read() as db:
                present = db.execute("SELECT 1 FROM policy WHERE id = ?", (policy_id,)).fetchone()
            if present is None:
                self.set(policy_id, defaults.read_default(policy_id))

    def set(self, policy_id: str, text: str) -> Policy:
        """Compiles `text` and makes it the active version. Raises `UsageError("policy-invalid")`, changing nothing."""
        Policy(policy_id, text)
        with self._database.write() as db:
            row = db.execute("SELECT max(version) FROM policy WHERE id = ?", (policy_id,)).fetchone()
            version = (row[0] or 0) + 1
            db.execute("INSERT INTO policy VALUES (?, ?, ?, ?)", (policy_id, version, int(self._now()), text))
        return Policy(policy_id, text, version)

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
