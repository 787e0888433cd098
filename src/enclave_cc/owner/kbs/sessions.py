"""RCAR sessions: from the challenge to the token, at most a few minutes, on any KBS process of one database.

    create   a challenge; nothing is stored (`session_ids`)
    open     the session behind a cookie: still to be answered, or accepted
    settle   the one answer: a row, inserted once, by whichever process is first; for an answer that is accepted, in the
             transaction of its audit entry (`prepare`, `Settlement.insert`, `conclude`)

Rows hold a digest of the id and the token sealed under it: who reads the database cannot take a session over.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable

from enclave_cc.crypto import aead
from enclave_cc.errors import PeerError
from enclave_cc.owner.kbs.session_ids import SessionId, SessionIds
from enclave_cc.owner.kbs.session_keys import SessionKeys
from enclave_cc.owner.storage.database import Connection, Database
from enclave_cc.record import record

# Accepted sessions never change, so a process need not ask the database for those it met lately.
_REMEMBERED = 1024
_PURGE_EVERY, _PURGE_AT_MOST = 64, 256


@record
class Session:
    """`id` is a bearer secret (the cookie); `token` is there once the attester was accepted."""

    id: str
    tee: str
    nonce: str
    expires: int  # Unix seconds
    token: str | None = None


_INSERT = "INSERT INTO session (id, expires, token) VALUES (?, ?, ?) ON CONFLICT DO NOTHING"


@record
class Settlement:
    """An answer that is about to be recorded. `session` has its token if it is accepted."""

    session: Session
    row: tuple[object, ...]

    def insert(self, db: Connection) -> bool:
        """False when another answer was first; then nothing was changed."""
        return db.execute(_INSERT, self.row).rowcount == 1


class Sessions:
    """Safe for many threads and for many processes that share store keys and database."""

    def __init__(self, database: Database, keys: SessionKeys, *, lifetime: int, now: Callable[[], float] = time.time) -> None:
        self._database = database
        self._keys = keys
        self._ids = SessionIds(keys)
        self._lifetime = lifetime
        self._now = now
        self._accepted: OrderedDict[str, Session] = OrderedDict()
        self._lock = threading.Lock()
        self._settled = itertools.count(1)

    def create(self, tee: str) -> Session:
        """A new session with a fresh nonce."""
        return _session(self._ids.make(tee, int(self._now()) + self._lifetime))

    def open(self, session_id: str) -> Session:
        """The session of a cookie, with its token if it was accepted.

        Raises `PeerError("unauthenticated")` for one that is not ours, has expired, or was answered and denied."""
        made = self._ids.read(session_id, self._now())
        with self._lock:
            known = self._accepted.get(session_id)
        if known is not None:
            return known
        digest = _digest(session_id)
        with self._database.read() as db:
            row = db.execute("SELECT token FROM session WHERE id = ?", (digest,)).fetchone()
        if row is None:
            return _session(made)
        if row[0] is None:
            raise answered_already()
        return self._remember(_session(made, self._unseal(digest, bytes(row[0]))))

    def settle(self, session: Session, token: str | None) -> Session:
        """Records the answer to a session's challenge: accepted with `token`, or denied. The first answer counts.

        Raises `PeerError("unauthenticated")` when another answer was first. A lost power, or a crash of PostgreSQL, may
        lose the row: then the very evidence that was denied is judged a second time.
        """
        settlement = self.prepare(session, token)
        if not self._database.run(_INSERT, settlement.row, durable=False).rowcount:
            raise answered_already()
        return self.conclude(settlement)

    def prepare(self, session: Session, token: str | None) -> Settlement:
        """For `settle` within another's transaction; when that is done, `conclude`."""
        digest = _digest(session.id)
        made = Session(session.id, session.tee, session.nonce, session.expires, token)
        return Settlement(made, (digest, session.expires, None if token is None else self._seal(digest, token)))

    def conclude(self, settlement: Settlement) -> Session:
        """The settled session."""
        if next(self._settled) % _PURGE_EVERY == 0:
            self.purge()
        settled = settlement.session
        return settled if settled.token is None else self._remember(settled)

    def purge(self) -> int:
        """Removes expired rows, at most some hundred at once; how many it was."""
        with self._database.write(durable=False, lock="session-purge") as db:
            return db.execute(
                "DELETE FROM session WHERE id IN (SELECT id FROM session WHERE expires <= ? ORDER BY expires LIMIT ?)",
                (int(self._now()), _PURGE_AT_MOST),
            ).rowcount

    def _remember(self, session: Session) -> Session:
        with self._lock:
            self._accepted[session.id] = session
            if len(self._accepted) > _REMEMBERED:
                self._accepted.popitem(last=False)
        return session

    def _seal(self, digest: bytes, token: str) -> bytes:
        nonce = os.urandom(aead.NONCE_SIZE)
        return nonce + aead.Aead(self._keys.all()[0].token).encrypt(nonce, token.encode(), digest)

    def _unseal(self, digest: bytes, sealed: bytes) -> str:
        for keys in self._keys.all():
            try:
                return aead.Aead(keys.token).decrypt(sealed[: aead.NONCE_SIZE], sealed[aead.NONCE_SIZE :], digest).decode()
            except PeerError:
                continue
        # Somebody changed the row.
        raise PeerError("unauthenticated", "there is no such session, or it has expired")


def _session(made: SessionId, token: str | None = None) -> Session:
    return Session(made.text, made.tee, made.nonce, made.expires, token)


def answered_already() -> PeerError:
    return PeerError("unauthenticated", "the session's challenge was answered already")


def _digest(session_id: str) -> bytes:
    return hashlib.sha256(session_id.encode()).digest()
