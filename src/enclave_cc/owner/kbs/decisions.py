"""What the KBS decided, for the data owner: JSON lines on stderr and rows in the database.

The client and the host see an id and a code; here stand the reasons. Nothing here is secret in the sense of a key: no
resource's value, token or cookie is ever written.
"""

from __future__ import annotations

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
from enclave_cc.owner.storage.database import Database
from enclave_cc.record import record

# Anybody can make the KBS deny something; the oldest rows go, so that nobody can fill its disk.
KEPT = 100_000
_TRIM_EVERY = 256


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

    def allow(self, stage: str, *, decision_id: str | None = None, **members: Any) -> Decision:
        return self._record("allow", stage, None, members, decision_id)

    def deny(self, stage: str, code: str, reasons: Sequence[Reason], *, decision_id: str | None = None, **members: Any) -> Decision:
        """`code` is what the client sees beside the id; `decision_id`: where the audit log has one already."""
        shown = {**members, "reasons": [reason.to_json() for reason in reasons]}
        return self._record("deny", stage, code, shown, decision_id)

    def _record(self, outcome: str, stage: str, code: str | None, members: Mapping[str, Any], decision_id: str | None) -> Decision:
        decision = Decision(decision_id or new_id(), int(self._now()), outcome, stage, code, members)
        self._log.write(outcome, {name: member for name, member in decision.to_json().items() if name != "outcome"})
        inserted = self._database.run(
            "INSERT INTO decision (id, at, outcome, code, document) VALUES (?, ?, ?, ?, ?) RETURNING number",
            (decision.id, decision.at, outcome, code, json.dumps({"stage": stage, **members}, default=str)),
            durable=False,
        )
        ((number,),) = inserted.rows
        if number % _TRIM_EVERY == 0:
            self._database.run("DELETE FROM decision WHERE number <= ?", (number - KEPT,), durable=False)
        return decision

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
