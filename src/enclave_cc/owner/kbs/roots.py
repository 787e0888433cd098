"""The platform roots that the owner trusts, with the collateral of each.

Intel's root is built in and needs collateral only. Every other root is named by the owner on the KBS's own machine:
there is no way to add one over the network.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Protocol

from enclave_cc.errors import UsageError, foreign
from enclave_cc.owner.storage.database import Connection, Database
from enclave_cc.owner.storage.generations import Cache, Generations
from enclave_cc.owner.verifier.roots import INTEL, TrustedRoot, intel_root
from enclave_cc.record import record

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}\Z")

_TOPIC = "root"


@record
class StoredCollateral:
    """A QuoteCollateralV3 document of a root, for one FMSPC (hex) and PCK CA ("platform" or "processor")."""

    root: str
    fmspc: str
    ca: str
    document: str
    added: int


class RootSource(Protocol):
    """Whose platforms are trusted."""

    def list_roots(self) -> list[TrustedRoot]: ...


class RootStore:
    """Safe for many threads, and for `kbs root` beside a running server."""

    def __init__(self, database: Database, *, generations: Generations | None = None, now: Callable[[], float] = time.time) -> None:
        self._database = database
        self._generations = generations or Generations(database)
        self._now = now
        self._roots: Cache[list[TrustedRoot]] = Cache(self._generations, _TOPIC)
        self._collateral: Cache[str | None] = Cache(self._generations, _TOPIC)
        self._intel = intel_root()

    def add(self, root: TrustedRoot) -> None:
        """Adds `root`; the same certificate again changes nothing. Raises `UsageError("already-exists")` if the name
        stands for another certificate."""
        if _NAME.match(root.name) is None:
            raise UsageError("usage", f"{foreign(root.name)!r} cannot name a root; use lower-case letters, digits, . _ -")
        if (root.name == INTEL) != (root.certificate == self._intel.certificate):
            raise UsageError("usage", f"the name {INTEL} is Intel's root, and Intel's root has no other name")

        def work(db: Connection) -> None:
            row = db.execute("SELECT certificate FROM root WHERE name = ?", (root.name,)).fetchone()
            if row is not None and row[0] != root.certificate:
                raise UsageError("already-exists", f"the root {root.name} is another certificate")
            db.execute(
                "INSERT INTO root VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
                (root.name, root.certificate, int(root.simulated), int(self._now())),
            )

        self._generations.change(_TOPIC, work)

    def set_collateral(self, root: str, fmspc: str, ca: str, document: str) -> None:
        """Replaces the collateral of one FMSPC and CA."""

        def work(db: Connection) -> None:
            db.execute(
                "INSERT INTO collateral (root, fmspc, ca, added, document) VALUES (?, ?, ?, ?, ?)"
                " ON CONFLICT (root, fmspc, ca) DO UPDATE SET added = excluded.added, document = excluded.document",
                (root, fmspc, ca, int(self._now()), document),
            )

        self._generations.change(_TOPIC, work)

    def remove(self, name: str) -> None:
        """Removes the root and its collateral; of Intel's, the collateral only. Raises `UsageError("not-found")`."""

        def work(db: Connection) -> None:
            if not db.execute("DELETE FROM root WHERE name = ?", (name,)).rowcount:
                raise UsageError("not-found", f"there is no root {foreign(name)}", "See `enclave-cc kbs root ls`.")

        self._generations.change(_TOPIC, work)

    def list_roots(self) -> list[TrustedRoot]:
        """Intel's, then those that the owner named."""
        return self._roots.get(None, self._load_roots)

    def _load_roots(self) -> list[TrustedRoot]:
        with self._database.read() as db:
            rows = db.execute("SELECT name, certificate, simulated FROM root WHERE name <> ? ORDER BY name", (INTEL,)).fetchall()
        return [self._intel, *(TrustedRoot(name, certificate, bool(simulated)) for name, certificate, simulated in rows)]

    def list_collateral(self, root: str | None = None) -> list[StoredCollateral]:
        with self._database.read() as db:
            rows = db.execute(
                "SELECT root, fmspc, ca, document, added FROM collateral WHERE CAST(? AS TEXT) IS NULL OR root = ?"
                " ORDER BY root, fmspc, ca",
                (root, root),
            ).fetchall()
        return [StoredCollateral(*row) for row in rows]

    def find_collateral(self, root: str, fmspc: str, ca: str) -> str | None:
        """The collateral document of a root for a quote's FMSPC and CA."""
        return self._collateral.get((root, fmspc, ca), lambda: self._load_collateral(root, fmspc, ca))

    def _load_collateral(self, root: str, fmspc: str, ca: str) -> str | None:
        with self._database.read() as db:
            row = db.execute(
                "SELECT document FROM collateral WHERE root = ? AND fmspc = ? AND ca = ?", (root, fmspc, ca)
            ).fetchone()
        return None if row is None else str(row[0])
