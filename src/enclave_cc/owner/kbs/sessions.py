"""RCAR sessions: from the challenge to the token, at most a few minutes."""

from __future__ import annotations

import base64
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Protocol

from enclave_cc.errors import PeerError
from enclave_cc.record import record, replace
from enclave_cc.wire.rcar import messages

MAX_SESSIONS = 100_000


@record
class Session:
    """`id` is a bearer secret (the cookie); `token` is there once the attester was accepted."""

    id: str
    tee: str
    nonce: str
    expires: float  # Unix seconds
    challenged: bool = True
    token: str | None = None


class SessionStore(Protocol):
    """Where sessions live. One process keeps them in memory; several would share a database."""

    def create(self, tee: str) -> Session:
        """A new session with a fresh nonce."""
        ...

    def find(self, session_id: str) -> Session:
        """Raises `PeerError("unauthenticated")` for an unknown or expired one."""
        ...

    def take_challenge(self, session_id: str) -> Session:
        """As `find`, and uses up the nonce: of two attestations to one challenge, the second is refused, unless the
        first was accepted; then the session is returned with its token."""
        ...

    def accept(self, session_id: str, token: str) -> Session:
        """Binds the token to the session."""
        ...


class MemorySessions:
    """Sessions of one process. Safe for many threads; the oldest go when there are too many."""

    def __init__(self, *, lifetime: float, now: Callable[[], float] = time.time, limit: int = MAX_SESSIONS) -> None:
        self._lifetime = lifetime
        self._now = now
        self._limit = limit
        self._lock = threading.Lock()
        self._sessions: OrderedDict[str, Session] = OrderedDict()

    def create(self, tee: str) -> Session:
        nonce = base64.b64encode(secrets.token_bytes(messages.NONCE_SIZE)).decode()
        # 32 hex digits as upstream's UUID; all of them random.
        session = Session(secrets.token_hex(16), tee, nonce, self._now() + self._lifetime)
        with self._lock:
            self._purge()
            self._sessions[session.id] = session
        return session

    def find(self, session_id: str) -> Session:
        with self._lock:
            return self._find(session_id)

    def take_challenge(self, session_id: str) -> Session:
        with self._lock:
            session = self._find(session_id)
            if session.token is not None:
                return session
            if not session.challenged:
                raise PeerError("unauthenticated", "the session's challenge was answered already")
            self._sessions[session_id] = replace(session, challenged=False)
            return session

    def accept(self, session_id: str, token: str) -> Session:
        with self._lock:
            session = self._sessions[session_id] = replace(self._find(session_id), token=token)
            return session

    def _find(self, session_id: str) -> Session:
        session = self._sessions.get(session_id)
        if session is None or session.expires <= self._now():
            raise PeerError("unauthenticated", "there is no such session, or it has expired")
        return session

    def _purge(self) -> None:
        """All sessions live equally long, so the oldest are first."""
        now = self._now()
        while self._sessions:
            first = next(iter(self._sessions.values()))
            if first.expires > now and len(self._sessions) < self._limit:
                return
            self._sessions.popitem(last=False)
