"""The append-only log on the KBS's database; any number of processes append to one.

Threads that append at the same time share a transaction (group commit): one of them, the leader, takes what is queued,
gives each draft its place, and commits; the others wait for it. Whoever comes meanwhile is the next group, led by its
first. The head, a row with the size, the last hash and the compact range, is all that appending reads, so that its cost
does not grow with the log.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

from enclave_cc.errors import EnclaveCcError, EnvironmentFault, PeerError, UsageError, foreign
from enclave_cc.owner.audit.kinds import Draft
from enclave_cc.owner.audit.nodes import TILE_HEIGHT, NodeReader
from enclave_cc.owner.storage.database import Connection, Database, transact
from enclave_cc.record import record
from enclave_cc.wire.audit.entry import NO_PREVIOUS, SALT_SIZE, Subject, encode_entry
from enclave_cc.wire.tlog.checkpoint import Checkpoint, verify_checkpoint
from enclave_cc.wire.tlog.note import NoteSigner, VerifierKey
from enclave_cc.wire.tlog.proofs import compute_root
from enclave_cc.wire.tlog.tree import CompactRange, hash_leaf

LOCK = "audit"
MAX_GROUP = 256

Beside = Callable[[Connection, int], bool]
"""Statements that belong to an entry, in its transaction; gets the entry's index. False, with nothing changed: the entry is
not to be. May run again, when the transaction is. What it raises fails the whole group: it must be able to run."""


@record
class Settings:
    """`checkpoint_every`: seconds after which an append signs a checkpoint; `deadline`: seconds that an append may wait."""

    checkpoint_every: int = 60
    deadline: float = 30.0


@record
class Receipt:
    """Where an entry is, now that it is durable."""

    index: int
    leaf: bytes


class _Waiting:
    """A draft in the queue. `turn` is set when it was appended, failed, or is to lead the next group."""

    __slots__ = ("beside", "draft", "ended", "failure", "leads", "receipt", "turn")

    def __init__(self, draft: Draft, beside: Beside | None) -> None:
        self.draft = draft
        self.beside = beside
        self.ended = False
        self.turn = threading.Event()
        self.leads = False
        self.receipt: Receipt | None = None
        self.failure: BaseException | None = None


class AuditLog:
    """Safe for many threads, and for many processes on one database."""

    def __init__(
        self,
        database: Database,
        signer: NoteSigner,
        *,
        keys: Sequence[VerifierKey] = (),
        settings: Settings = Settings(),  # noqa: B008 (immutable)
        now: Callable[[], float] = time.time,
    ) -> None:
        """Opens the log, beginning it if need be. `keys`: former keys, by which old checkpoints may be signed.

        1. The database's log is of the signer's origin.
        2. The head agrees with the last entry, and nothing lies behind it.
        3. The newest checkpoint is signed by one of the keys, and its root is that of the entries.

        Raises `UsageError("bad-config")` (1), `PeerError`: "audit-broken", "audit-truncated" (2, 3), "audit-signature" (3).
        """
        self._database = database
        self._signer = signer
        self.keys = tuple(dict.fromkeys((*keys, signer.verifier)))
        self._settings = settings
        self._now = now
        self.nodes = NodeReader(database)
        self._lock = threading.Lock()
        self._queue: deque[_Waiting] = deque()
        self._led = False
        transact(database, self._begin, lock=LOCK)
        self._check()

    @property
    def origin(self) -> str:
        return self._signer.name

    def size(self) -> int:
        """How many entries there are now."""
        with self._database.read() as db:
            return int(db.execute("SELECT size FROM audit_head").fetchone()[0])

    def append(self, draft: Draft) -> Receipt:
        """Appends, and returns when the entry is on disk.

        Raises `EnvironmentFault`, as the database does, or "deadline": the entry is then not there, or unacknowledged."""
        receipt = self.append_with(draft, None)
        assert receipt is not None  # noqa: S101 (nothing beside it could have said no)
        return receipt

    def append_with(self, draft: Draft, beside: Beside | None) -> Receipt | None:
        """As `append`, with what belongs to the entry, all or nothing; None when `beside` said no."""
        waiting = _Waiting(draft, beside)
        with self._lock:
            self._queue.append(waiting)
            leads, self._led = not self._led, True
        if not leads:
            if not waiting.turn.wait(self._settings.deadline):
                self._leave(waiting)
            leads = waiting.leads
        if leads:
            self._lead()
        if waiting.failure is not None:
            raise _repeat(waiting.failure) from waiting.failure
        if not waiting.ended:
            raise EnvironmentFault(
                "deadline", "the audit log could not be written in time", "See the KBS's log for what holds it up."
            )
        return waiting.receipt

    def checkpoint(self) -> bytes:
        """A signed note of all that was appended, stored; the one that is there if nothing was since."""

        def sign(db: Connection) -> bytes:
            return self._sign(db, _read_head(db).tree)

        return transact(self._database, sign, lock=LOCK)

    def _leave(self, waiting: _Waiting) -> None:
        """Gives up, unless its turn came at the last moment."""
        with self._lock:
            if not waiting.leads and waiting in self._queue:
                self._queue.remove(waiting)
                return
        # A group with it is being committed: the database's own deadlines end that.
        waiting.turn.wait()

    def _lead(self) -> None:
        """Commits one group, in which the caller's own draft is the first, and passes the lead on."""
        with self._lock:
            group = [self._queue.popleft() for _ in range(min(len(self._queue), MAX_GROUP))]
        try:
            receipts = transact(self._database, lambda db: self._write(db, group), lock=LOCK)
            for waiting, receipt in zip(group, receipts, strict=True):
                waiting.receipt, waiting.ended = receipt, True
        except BaseException as error:  # noqa: BLE001 (raised again by each that waits)
            for waiting in group:
                waiting.failure = error
        finally:
            with self._lock:
                following = self._queue[0] if self._queue else None
                self._led = following is not None
                if following is not None:
                    following.leads = True
            for waiting in (*group, *([] if following is None else [following])):
                waiting.turn.set()

    def _write(self, db: Connection, group: Sequence[_Waiting]) -> list[Receipt | None]:
        """Gives each draft its place, and moves the head: one transaction."""
        head, at = _read_head(db), int(self._now())
        tree, last = head.tree, head.last
        numbers: dict[str, int] = {}
        receipts: list[Receipt | None] = []
        for waiting in group:
            draft, beside = waiting.draft, waiting.beside
            if beside is not None and not beside(db, tree.size):
                receipts.append(None)
                continue
            subject, number = None, None
            if draft.subject is not None:
                numbers[draft.subject] = number = (numbers.get(draft.subject) or _last_number(db, draft.subject)) + 1
                subject = Subject(draft.subject, number)
            index, salt = tree.size, os.urandom(SALT_SIZE)
            data = encode_entry(draft.document, index=index, at=at, kind=draft.kind, previous=last, salt=salt, subject=subject)
            last = hash_leaf(data)
            db.execute(
                "INSERT INTO audit_entry (leaf_index, leaf_hash, subject, number, decision, attestation, entry)"
                " VALUES (?, ?, ?, ?, ?, ?, ?)",
                (index, last, draft.subject, number, draft.attested, draft.attestation, data),
            )
            for node in tree.append(last):
                if node.level % TILE_HEIGHT == 0:
                    db.execute("INSERT INTO audit_node VALUES (?, ?, ?)", (node.level, node.index, node.hash))
            receipts.append(Receipt(index, last))
        due = at >= head.signed_at + self._settings.checkpoint_every
        if due:
            self._sign(db, tree)
        db.execute(
            "UPDATE audit_head SET size = ?, tree = ?, last = ?, signed_at = ?",
            (tree.size, tree.encode(), last, at if due else head.signed_at),
        )
        return receipts

    def _sign(self, db: Connection, tree: CompactRange) -> bytes:
        key = self._signer.verifier.id.hex()
        found = db.execute("SELECT note FROM audit_checkpoint WHERE size = ? AND key_id = ?", (tree.size, key)).fetchone()
        if found is not None:
            return bytes(found[0])
        note = Checkpoint(self.origin, tree.size, tree.root()).sign(self._signer).encode()
        db.execute("INSERT INTO audit_checkpoint VALUES (?, ?, ?, ?)", (tree.size, key, int(self._now()), note))
        return note

    def _begin(self, db: Connection) -> None:
        # 1
        row = db.execute("SELECT origin FROM audit_head").fetchone()
        if row is None:
            db.execute("INSERT INTO audit_head VALUES (1, ?, 0, ?, ?, 0)", (self.origin, b"", NO_PREVIOUS))
        elif row[0] != self.origin:
            raise UsageError(
                "bad-config",
                f"the database's audit log is {foreign(row[0])}, and audit.pub of this KBS directory is of {self.origin}",
                "All instances on one database have the same KBS directory: copy audit.key and audit.pub from the first.",
            )

    def _check(self) -> None:
        # 2
        with self._database.read() as db:
            # One statement, so that an append of another process does not come between.
            row = db.execute(
                "SELECT size, tree, last, (SELECT leaf_hash FROM audit_entry WHERE leaf_index = audit_head.size - 1),"
                " (SELECT max(leaf_index) FROM audit_entry),"
                " (SELECT size FROM audit_checkpoint ORDER BY size DESC, at DESC LIMIT 1),"
                " (SELECT note FROM audit_checkpoint ORDER BY size DESC, at DESC LIMIT 1) FROM audit_head"
            ).fetchone()
        size, tree, last, leaf, top, signed_size, note = row
        if signed_size is not None and signed_size > size:
            raise PeerError(
                "audit-truncated", f"the audit log has {size} entries, and a signed checkpoint says it had {signed_size}"
            )
        if (top if top is not None else -1) != size - 1 or (leaf is None) != (size == 0) or (leaf is not None and leaf != last):
            raise PeerError("audit-broken", f"the audit log's head of {size} entries does not agree with its last entry")
        if _decode_tree(size, tree).root() != compute_root(size, self.nodes.read):
            raise PeerError("audit-broken", f"the audit log's head of {size} entries does not agree with its tree")
        # 3
        if note is not None:
            checkpoint = verify_checkpoint(bytes(note), self.keys)
            if checkpoint.size != signed_size or checkpoint.root != compute_root(signed_size, self.nodes.read):
                raise PeerError("audit-broken", f"an entry below {signed_size} was changed: the signed checkpoint has another root")


@record
class _Head:
    """What appending goes on from. `tree` is this one's own to append to."""

    tree: CompactRange
    last: bytes
    signed_at: int


def _read_head(db: Connection) -> _Head:
    size, tree, last, signed_at = db.execute("SELECT size, tree, last, signed_at FROM audit_head").fetchone()
    return _Head(_decode_tree(size, tree), bytes(last), signed_at)


def _decode_tree(size: int, tree: bytes) -> CompactRange:
    try:
        return CompactRange.decode(size, bytes(tree))
    except PeerError as error:
        raise PeerError("audit-broken", f"the audit log's head: {error.what}") from error


def _last_number(db: Connection, subject: str) -> int:
    row = db.execute("SELECT number FROM audit_entry WHERE subject = ? ORDER BY leaf_index DESC LIMIT 1", (subject,)).fetchone()
    return 0 if row is None else int(row[0])


def _repeat(failure: BaseException) -> BaseException:
    """An error for each of those that waited: one object would collect the traces of all. Whatever it is that the log
    suffers from, it is the KBS's own trouble and not its client's."""
    match failure:
        case EnvironmentFault():
            return EnvironmentFault(failure.code, failure.what, failure.fix)
        case EnclaveCcError():
            return EnvironmentFault("environment", f"the audit log cannot be written: {failure.what}", failure.fix)
        case _:
            return failure
