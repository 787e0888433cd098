"""What the KBS decided, for the data owner: JSON lines on stderr and rows in the database.

The client and the host see an id and a code; here stand the reasons. Nothing here is secret in the sense of a key: no
resource's value, token or cookie is ever written.
"""

from __future__ import annotations

import itertools
import json
import secrets
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import IO, Any

from enclave_cc.errors import UsageError, foreign
from enclave_cc.owner.kbs import request_ids
from enclave_cc.owner.policy.reasons import Reason
from enclave_cc.owner.storage.database import Connection, Database
from enclave_cc.record import record

# Anybody can make the KBS deny something; the oldest rows go, so that nobody can fill its disk.
KEPT = 100_000
_TRIM_EVERY = 256
_INSERT = "INSERT INTO decision (id, at, outcome, code, document) VALUES (?, ?, ?, ?, ?)"
_TRIM = "DELETE FROM decision WHERE number <= (SELECT max(number) FROM decision) - ?"


@record
class Decision:
    """One decision. `outcome` is "allow" or "deny"; `stage` is "attest" or "release"."""

    id: str
    at: int
    outcome: str
    stage: str
    code: str | None
    document: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        value: dict[str, Any] = {"id": self.id, "at": self.at, "outcome": self.outcome, "stage": self.stage}
        if self.code is not None:
            value["code"] = self.code
        return {**value, **self.document}


@record
class Prepared:
    """A decision that is about to be kept. `row`: its columns, of which the last is the document as JSON."""

    decision: Decision
    row: tuple[str | int | None, ...]

    def insert(self, db: Connection, audit: int) -> None:
        """Keeps it in the transaction of the audit entry `audit`."""
        *columns, document = self.row
        db.execute(_INSERT, (*columns, f'{{"audit":{audit},{str(document)[1:]}'))


class Log:
    """One JSON object per line on a stream; `request` names the request that it was written for. For many threads."""

    def __init__(self, stream: IO[str] | None = None) -> None:
        self._stream = stream
        self._lock = threading.Lock()

    def write(self, event: str, members: Mapping[str, Any]) -> None:
        request = request_ids.CURRENT.get()
        if request:
            members = {**members, "request": request}
        line = json.dumps({"event": event, **members}, separators=(",", ":"), default=str)
        with self._lock:
            stream = self._stream if self._stream is not None else sys.stderr
            stream.write(line + "\n")
            stream.flush()


def new_id() -> str:
    """The id of a decision, which nobody guesses."""
    return secrets.token_hex(8)


class DecisionLog:
    """Writes decisions and finds them again by id. Safe for many threads."""

    def __init__(self, database: Database, log: Log, *, now: Callable[[], float] = time.time) -> None:
        self._database = database
        self._log = log
        self._now = now
        self._count = itertools.count(1)

    def allow(self, stage: str, **members: Any) -> Decision:
        return self._keep(self.prepare_allow(stage, new_id(), **members))

    def deny(self, stage: str, code: str, reasons: Sequence[Reason], **members: Any) -> Decision:
        """`code` is what the client sees beside the id."""
        return self._keep(self.prepare_deny(stage, code, reasons, new_id(), **members))

    def prepare_allow(self, stage: str, decision_id: str, **members: Any) -> Prepared:
        """As `allow`, for `Prepared.insert` within the audit log's transaction; when that is done, `conclude`."""
        return self._prepare("allow", stage, None, members, decision_id)

    def prepare_deny(self, stage: str, code: str, reasons: Sequence[Reason], decision_id: str, **members: Any) -> Prepared:
        """As `deny`, likewise."""
        shown = {**members, "reasons": [reason.to_json() for reason in reasons]}
        return self._prepare("deny", stage, code, shown, decision_id)

    def conclude(self, prepared: Prepared, **members: Any) -> Decision:
        """Tells the log of a decision that was kept."""
        decision = prepared.decision
        told = {**decision.to_json(), **members}
        del told["outcome"]
        self._log.write(decision.outcome, told)
        if next(self._count) % _TRIM_EVERY == 0:
            self._database.run(_TRIM, (KEPT,), durable=False)
        return decision

    def _prepare(self, outcome: str, stage: str, code: str | None, members: Mapping[str, Any], decision_id: str) -> Prepared:
        decision = Decision(decision_id, int(self._now()), outcome, stage, code, members)
        document = json.dumps({"stage": stage, **members}, separators=(",", ":"), default=str)
        return Prepared(decision, (decision.id, decision.at, outcome, code, document))

    def _keep(self, prepared: Prepared) -> Decision:
        self._database.run(_INSERT, prepared.row, durable=False)
        return self.conclude(prepared)

    def find(self, decision_id: str) -> Decision:
        """Raises `UsageError("not-found")`."""
        with self._database.read() as db:
            row = db.execute("SELECT id, at, outcome, code, document FROM decision WHERE id = ?", (decision_id,)).fetchone()
        if row is None:
            raise UsageError("not-found", f"there is no decision {foreign(decision_id)}", "Take the id from the refusal's message.")
        return _read(row)

    def list(self, *, outcome: str | None = None, limit: int = 100) -> list[Decision]:
        """The newest first."""
        with self._database.read() as db:
            rows = db.execute(
                "SELECT id, at, outcome, code, document FROM decision WHERE CAST(? AS TEXT) IS NULL OR outcome = ?"
                " ORDER BY number DESC LIMIT ?",
                (outcome, outcome, limit),
            ).fetchall()
        return [_read(row) for row in rows]


def _read(row: Sequence[Any]) -> Decision:
    document = json.loads(row[4])
    return Decision(row[0], row[1], row[2], document.pop("stage"), row[3], document)
