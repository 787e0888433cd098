"""Evidence and release requests as they came, for `policy replay`. No resource, token, cookie or private key is in them.

An attestation is recorded as the attester sent it, with the claims that were verified; a release request as path and
query, under the id of the attestation whose token it came with. A thread writes what has gathered, several rows in one
transaction that need not survive a power cut: a request waits for nothing. What would gather beyond `_WAITING` rows or
`_WAITING_BYTES` is dropped and counted. Evidence that was refused is anybody's: of it only so much is recorded that it
pushes nothing else out.
"""

from __future__ import annotations

import json
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import zstandard

from enclave_cc.errors import EnvironmentFault, UsageError
from enclave_cc.owner.kbs.evidence import VerifiedEvidence
from enclave_cc.owner.kbs.rate_limits import Buckets, Rate
from enclave_cc.owner.kbs.settings import Section
from enclave_cc.owner.storage.database import Database
from enclave_cc.record import record

ATTEST, RELEASE = "attest", "release"
MAX_BODY = 256 * 1024  # evidence with init-data has about 12 kB
MAX_REFUSED = 32 * 1024
REFUSED = Rate(0.2, 500)  # by each process
_WAITING = 4096
_WAITING_BYTES = 32 * 1024 * 1024  # of evidence
_BATCH = 256
_FLUSH_SECONDS = 5.0
_PAUSE = 0.2  # seconds in which rows gather
_DAY = 24 * 3600
_MAX_DOCUMENT = 4 * 1024 * 1024


@record
class RecordingSettings:
    """`count` and `days` bound what is kept; the oldest goes first."""

    enabled: bool = True
    count: int = 20_000
    days: float = 30

    @classmethod
    def read(cls, section: Section) -> RecordingSettings:
        """Raises `UsageError("bad-config")`."""
        enabled, count = section.flag("enabled", True), section.number("count", 20_000, low=1, high=10_000_000)
        days = section.number("days", 30, low=0.01, high=36_500)
        section.finish()
        return cls(enabled, int(count), float(days))


@record
class Recording:
    """One row. `subject`: the decision id of the attestation that this is, or whose token the request came with.

    `document` of an attestation: `tee`, `body` (the Attestation as sent) and `verified` (a list of claims, None where the
    evidence was refused); of a release: `request` ({plugin, segments, query}), and `claims` of a token that is of another
    issuer. `outcome` is "allow" or "deny".
    """

    number: int
    at: int
    stage: str
    subject: str
    decision: str
    outcome: str
    code: str | None
    document: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        return {
            "number": self.number,
            "at": self.at,
            "stage": self.stage,
            "subject": self.subject,
            "decision": self.decision,
            "outcome": self.outcome,
            "code": self.code,
            "document": dict(self.document),
        }

    @classmethod
    def from_json(cls, value: object) -> Recording:
        """Raises `UsageError("usage")`: an export is the owner's own file."""
        try:
            assert isinstance(value, Mapping)  # noqa: S101
            code = value["code"]
            return cls(
                int(value["number"]),
                int(value["at"]),
                str(value["stage"]),
                str(value["subject"]),
                str(value["decision"]),
                str(value["outcome"]),
                None if code is None else str(code),
                dict(value["document"]),
            )
        except (AssertionError, KeyError, TypeError, ValueError) as error:
            raise UsageError(
                "usage", "this is no recording", "Export it again with `enclave-cc policy replay --export`."
            ) from error


class Recorder:
    """Writes and reads recordings. Safe for many threads; `close` writes what has gathered."""

    def __init__(
        self,
        database: Database,
        settings: RecordingSettings,
        *,
        report: Callable[[str], None] = lambda _why: None,
        now: Callable[[], float] = time.time,
    ) -> None:
        """`report` is told why recordings were lost."""
        self._database = database
        self._settings = settings
        self._report = report
        self._now = now
        self._waiting: queue.Queue[tuple[int, tuple[Any, ...]] | threading.Event | None] = queue.Queue(_WAITING)
        self._lock = threading.Lock()  # of the three below
        self._bytes = 0
        self._dropped = 0
        self._refused = Buckets(REFUSED, clock=now)
        self._written = _BATCH  # what is too old goes with the first row
        self._thread: threading.Thread | None = None
        self._start = threading.Lock()
        self._closed = False

    def attest(
        self, decision: str, tee: str, body: bytes, verified: Sequence[VerifiedEvidence] | None, *, code: str | None = None
    ) -> None:
        """An answered challenge; `code`: why it was refused, None if it was accepted."""
        if not self._settings.enabled or len(body) > (MAX_BODY if verified is not None else MAX_REFUSED):
            return
        if verified is None:
            with self._lock:
                if self._refused.take(None):
                    return
        document = {"tee": tee, "body": body.decode("utf-8", "replace"), "verified": _to_json(verified)}
        self._put(ATTEST, decision, decision, code, document, size=len(body))

    def release(
        self,
        decision: str,
        subject: str,
        request: Mapping[str, Any],
        *,
        claims: Mapping[str, Any] | None = None,
        code: str | None = None,
    ) -> None:
        """A judged request. `claims`: of a token that no recorded attestation stands behind."""
        if self._settings.enabled:
            document: dict[str, Any] = {"request": request}
            if claims is not None:
                document["claims"] = claims
            self._put(RELEASE, subject, decision, code, document)

    def _put(
        self, stage: str, subject: str, decision: str, code: str | None, document: Mapping[str, Any], *, size: int = 0
    ) -> None:
        row = (int(self._now()), stage, subject, decision, "allow" if code is None else "deny", code, document)
        with self._lock:
            if self._bytes + size > _WAITING_BYTES:
                self._dropped += 1
                return
            self._bytes += size
        try:
            self._waiting.put_nowait((size, row))
        except queue.Full:
            with self._lock:
                self._bytes -= size
                self._dropped += 1
            return
        if self._thread is None:
            with self._start:
                if self._thread is None and not self._closed:
                    self._thread = threading.Thread(target=self._work, name="recorder", daemon=True)
                    self._thread.start()

    def _work(self) -> None:
        ended = False
        while not ended:
            items = [self._waiting.get()]
            deadline = time.monotonic() + _PAUSE
            while isinstance(items[-1], tuple) and len(items) < _BATCH:
                try:
                    items.append(self._waiting.get(timeout=max(0.0, deadline - time.monotonic())))
                except queue.Empty:
                    break
            sized = [item for item in items if isinstance(item, tuple)]
            if sized:
                self._write([row for _, row in sized])
                with self._lock:
                    self._bytes -= sum(size for size, _ in sized)
            last = items[-1]
            if isinstance(last, threading.Event):
                last.set()
            ended = last is None

    def _write(self, rows: Sequence[tuple[Any, ...]]) -> None:
        compressor = zstandard.ZstdCompressor(level=3)
        try:
            with self._database.write(durable=False) as db:
                number = 0
                for *columns, document in rows:
                    packed = compressor.compress(json.dumps(document, separators=(",", ":")).encode())
                    number = db.execute(
                        "INSERT INTO recording (at, stage, subject, decision, outcome, code, document)"
                        " VALUES (?, ?, ?, ?, ?, ?, ?) RETURNING number",
                        (*columns, packed),
                    ).fetchone()[0]
                self._written += len(rows)
                if self._written >= _BATCH:
                    self._written = 0
                    oldest = int(self._now() - self._settings.days * _DAY)
                    db.execute("DELETE FROM recording WHERE number <= ? OR at < ?", (number - self._settings.count, oldest))
        except (EnvironmentFault, UsageError) as error:
            self._report(f"{len(rows)} recordings: {error.code}")
        with self._lock:
            dropped, self._dropped = self._dropped, 0
        if dropped:
            self._report(f"{dropped} recordings: too many at once")

    def flush(self) -> None:
        """Returns when what was put before is written, or after `_FLUSH_SECONDS`."""
        if self._thread is not None and self._thread.is_alive():
            written = threading.Event()
            self._waiting.put(written)
            written.wait(_FLUSH_SECONDS)

    def close(self) -> None:
        self._closed = True
        if self._thread is not None:
            self._waiting.put(None)
            self._thread.join()

    def list(self, *, after: int = 0, since: int | None = None, limit: int = 500) -> list[Recording]:
        """The oldest first, from the number behind `after` on, and not older than `since` (Unix seconds) nor than kept."""
        self.flush()
        begin = max(since or 0, int(self._now() - self._settings.days * _DAY))
        with self._database.read() as db:
            rows = db.execute(
                "SELECT number, at, stage, subject, decision, outcome, code, document FROM recording"
                " WHERE number > ? AND at >= ? ORDER BY number LIMIT ?",
                (after, begin, limit),
            ).fetchall()
        return [_read(row) for row in rows]

    def find_attestation(self, subject: str) -> Recording | None:
        with self._database.read() as db:
            row = db.execute(
                "SELECT number, at, stage, subject, decision, outcome, code, document FROM recording"
                " WHERE subject = ? AND stage = ?",
                (subject, ATTEST),
            ).fetchone()
        return None if row is None else _read(row)


def _to_json(verified: Sequence[VerifiedEvidence] | None) -> list[dict[str, Any]] | None:
    if verified is None:
        return None
    return [
        {
            "tee": each.tee,
            "tee_class": each.tee_class,
            "claims": dict(each.claims),
            "report_data": each.report_data,
            "init_data": each.init_data,
        }
        for each in verified
    ]


def _read(row: Sequence[Any]) -> Recording:
    document = json.loads(zstandard.ZstdDecompressor().decompress(row[7], max_output_size=_MAX_DOCUMENT))
    number, at, stage, subject, decision, outcome, code = row[:7]
    return Recording(number, at, stage, subject, decision, outcome, code, document)
