"""Who may be served now: rates by client address and administrator, and room for those who have shown no token.

Runs on the event loop, before anything of a request but its head was read. Each process has its own counts. Of what all
share, places among the waiting and room for bodies, one address gets half at most: it cannot keep the others out by asking
slowly.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from enclave_cc.errors import PeerError
from enclave_cc.owner.kbs.admin import Administrator
from enclave_cc.owner.kbs.metrics import Metrics
from enclave_cc.owner.kbs.rate_limits import Buckets, RateLimits

# Answers that cost their address a unit: what a well-behaved client seldom gets.
REFUSALS = frozenset((400, 401, 403, 404, 405, 408, 411, 413))


class TooMany(PeerError):
    """Turned away; `retry_after`: whole seconds after which it may be otherwise."""

    def __init__(self, what: str, wait: float) -> None:
        super().__init__("rate-limited", what)
        self.retry_after = max(1, math.ceil(wait))


class Admission:
    """Raises `TooMany` where a limit is reached. For one event loop."""

    def __init__(self, limits: RateLimits, metrics: Metrics, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits = limits
        self._metrics = metrics
        self._addresses = Buckets(limits.address, clock=clock)
        self._refusals = Buckets(limits.refusals, clock=clock)
        self._admins = Buckets(limits.admin, clock=clock)
        self._waiting = _Shared(limits.waiting)
        self._buffered = _Shared(limits.buffered)

    def admit(self, client: str) -> None:
        """A request of this client address."""
        if wait := self._addresses.take(client):
            raise self._turn_away("address", "this address sends too many requests", wait)
        if wait := self._refusals.wait(client):
            raise self._turn_away("refusals", "too many requests of this address were refused", wait)

    def admit_administrator(self, administrator: Administrator) -> None:
        if wait := self._admins.take((administrator.provider, administrator.subject)):
            raise self._turn_away("admin", "this administrator sends too many requests", wait)

    def note(self, client: str, status: int) -> None:
        """What a client was answered."""
        if status in REFUSALS:
            self._refusals.take(client)

    @contextmanager
    def queue(self, client: str) -> Iterator[None]:
        """A place among the handshakes that wait for a thread, or have one."""
        if not self._waiting.take(client, 1):
            raise self._turn_away("queue", "too many handshakes are waiting", 1)
        try:
            yield
        finally:
            self._waiting.give_back(client, 1)

    @contextmanager
    def buffer(self, client: str) -> Iterator[Callable[[int], None]]:
        """Room for a body of somebody who has shown no token: a function that takes bytes of it."""
        taken = 0

        def take(size: int) -> None:
            nonlocal taken
            if not self._buffered.take(client, size):
                raise self._turn_away("queue", "too much is waiting to be read", 1)
            taken += size

        try:
            yield take
        finally:
            self._buffered.give_back(client, taken)

    def _turn_away(self, limit: str, what: str, wait: float) -> TooMany:
        self._metrics.limited.add(limit)
        return TooMany(what, wait)


class _Shared:
    """An amount of which each client gets half at most, and one unit in any case."""

    def __init__(self, whole: int) -> None:
        self._left = whole
        self._each = max(1, whole // 2)
        self._taken: dict[str, int] = {}

    def take(self, client: str, size: int) -> bool:
        taken = self._taken.get(client, 0) + size
        if size > self._left or taken > self._each:
            return False
        self._left -= size
        self._taken[client] = taken
        return True

    def give_back(self, client: str, size: int) -> None:
        self._left += size
        left = self._taken.get(client, 0) - size
        if left > 0:
            self._taken[client] = left
        else:
            self._taken.pop(client, None)
