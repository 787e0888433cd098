"""The platform roots that the owner trusts, with the collateral of each.

Intel's root is built in and needs collateral only. Every other root is named by the owner on the KBS's own machine:
there is no way to add one over the network.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from enclave_cc.errors import UsageError, foreign
from enclave_cc.owner.resources.database import Database

INTEL = "intel"
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}\Z")


@dataclass(frozen=True, slots=True)
class Root:
    """A trusted root: DER certificate, and whether it is a simulated platform's."""

    name: str
    certificate: bytes
    simulated: bool


@dataclass(frozen=True, slots=True)
class StoredCollateral:
    """A QuoteCollateralV3 document of a root, for one FMSPC (hex) and PCK CA ("platform" or "processor")."""

    root: str
    fmspc: str
    ca: str
    document: str
    added: int


class RootStore:
    """Safe for many threads, and for `kbs root` beside a running server."""

    def __init__(self, database: Database, *, now: Callable[[], float] = time.time) -> None:
        self._database = database
        self._now = now
        self._lock = threading.Lock()

    def add(self, root: Root) -> None:
        """Adds `root`; the same certificate again changes nothing. Raises `UsageError("already-exists")` if the name
        stands for another certificate."""
        if _NAME.match(root.name) is None:
            raise UsageError("usage", f"{foreign(root.name)!r} cannot name a root; use lower-case letters, digits, . _ -")
        with self._database.write() as db:
            row = db.execute("SELECT certificate FROM root WHERE name = ?", (root.name,)).fetchone()
            if row is not None and row[0] != root.certificate:
                raise UsageError("already-exists", f"the root {root.name} is another certificate")
            db.execute(
                "INSERT OR IGNORE INTO root VALUES (?, ?, ?, ?)", (root.name, root.certificate, root.simulated, int(self._now()))
            )

    def set_collateral(self, root: str, fmspc: str, ca: str, document: str) -> None:
        """Replaces the collateral of one FMSPC and CA."""
        with self._database.write() as db:
            db.execute("INSERT OR REPLACE INTO collateral VALUES (?, ?, ?, ?, ?)", (root, fmspc, ca, int(self._now()), document))

    def remove(self, name: str) -> None:
        """Removes the root and its collateral. Raises `UsageError("not-found")`."""
        with self._database.write() as db:
            if not db.execute("DELETE FROM root WHERE name = ?", (name,)).rowcount:
                raise UsageError("not-found", f"there is no root {foreign(name)}", "See `enclave-cc kbs root ls`.")

    def list_roots(self) -> list[Root]:
        with self._database.read() as db:
            rows = db.execute("SELECT name, certificate, simulated FROM root ORDER BY name").fetchall()
        return [Root(name, certificate, bool(simulated)) for name, certificate, simulated in rows]

    def list_collateral(self, root: str | None = None) -> list[StoredCollateral]:
        with self._database.read() as db:
            rows = db.execute(
                "SELECT root, fmspc, ca, document, added FROM collateral WHERE ? IS NULL OR root = ? ORDER BY root, fmspc, ca",
                (root, root),
            ).fetchall()
        return [StoredCollateral(*row) for row in rows]

    def find_collateral(self, fmspc: str, ca: str) -> list[StoredCollateral]:
        """The collateral for a quote's FMSPC and CA, of every root."""
        with self._database.read() as db:
            rows = db.execute(
                "SELECT root, fmspc, ca, document, added FROM collateral WHERE fmspc = ? AND ca = ? ORDER BY root", (fmspc, ca)
            ).fetchall()
        return [StoredCollateral(*row) for row in rows]


def read_fmspc(document: str) -> str:
    """The FMSPC (12 lower-case hex digits) that a collateral document's TCB info is about.

    Raises `UsageError("bad-config")`."""
    try:
        fmspc = json.loads(json.loads(document)["tcb_info"])["fmspc"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UsageError("bad-config", "the collateral is not a QuoteCollateralV3 document") from error
    if not isinstance(fmspc, str) or re.fullmatch(r"[0-9A-Fa-f]{12}", fmspc) is None:
        raise UsageError("bad-config", "the collateral's TCB info names no FMSPC")
    return fmspc.lower()
