"""How processes on one database keep what they read of it, and still see each other's changes in time.

What rarely changes (policies, reference values, platform roots) belongs to a *topic* with a number in the table
`generation`. `change` raises it in the changing transaction, by a random step; a `Cache` keeps what it loaded until the number
differs. The numbers are read at most once in `FRESH_SECONDS`, all in one small query, however many requests come. Steps are
random so that a number never comes twice: a standby that took over without the last changes, and is changed then, would
otherwise have the numbers of what was lost.

A change counts once it is acknowledged: `change` returns `FRESH_SECONDS` after its commit, and what is looked up later
than that, in any process, is looked up in numbers that were read after the commit. No clocks are compared.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Mapping
from typing import Generic, TypeVar

from enclave_cc.owner.storage.database import Connection, Database, transact

T = TypeVar("T")
FRESH_SECONDS = 0.02
_STEP = 1 << 32
_ABSENT = object()


class Generations:
    """The numbers of all topics. One per process and database; safe for many threads."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self._lock = threading.Lock()
        self._numbers: Mapping[str, int] = {}
        self._read_at = float("-inf")

    def number(self, topic: str) -> int:
        """Not older than `FRESH_SECONDS`. Raises `EnvironmentFault`."""
        if time.monotonic() - self._read_at > FRESH_SECONDS:
            with self._lock:
                if time.monotonic() - self._read_at > FRESH_SECONDS:  # nobody read them while this thread waited
                    begin = time.monotonic()
                    with self.database.read() as db:
                        self._numbers = dict(db.execute("SELECT topic, number FROM generation").fetchall())
                    self._read_at = begin
        return self._numbers.get(topic, 0)

    def change(self, topic: str, work: Callable[[Connection], T]) -> T:
        """`work` in a durable transaction, one at a time per topic (`transact`); returns when every process sees it.

        Nothing else may change what belongs to the topic."""

        def count_up(db: Connection) -> T:
            result = work(db)
            db.execute(
                "INSERT INTO generation (topic, number) VALUES (?, ?)"
                " ON CONFLICT (topic) DO UPDATE SET number = generation.number + excluded.number",
                (topic, 1 + secrets.randbelow(_STEP)),
            )
            return result

        result = transact(self.database, count_up, lock=topic)
        time.sleep(FRESH_SECONDS)
        return result


class Cache(Generic[T]):
    """What was loaded of one topic, by key. Safe for many threads. `size`: how many entries are kept."""

    def __init__(self, generations: Generations, topic: str, *, size: int = 1024) -> None:
        self._generations = generations
        self._topic = topic
        self._size = size
        self._lock = threading.Lock()
        self._number = -1
        self._entries: dict[object, T] = {}

    def get(self, key: object, load: Callable[[], T]) -> T:
        """What `load` gave for `key` in the present generation; what it raises is not kept."""
        number = self._generations.number(self._topic)
        with self._lock:
            if self._number != number:
                self._entries, self._number = {}, number
            found = self._entries.get(key, _ABSENT)
        if found is not _ABSENT:
            return found  # type: ignore[return-value]
        loaded = load()
        with self._lock:
            # Loaded after `number` was read, so not older than it; if the process knows another one, it may be stale.
            if self._number == number:
                if len(self._entries) >= self._size:
                    self._entries.clear()
                self._entries[key] = loaded
        return loaded
