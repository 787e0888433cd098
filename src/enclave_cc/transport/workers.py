"""Threads that run calls: a bounded set, made when needed and ending when idle.

The standard library's pool imports logging and never shrinks; this one is what a small server needs.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue

# A worker that had nothing to do for so many seconds ends; the next call starts another.
_IDLE = 10.0


class Workers:
    """At most `limit` pieces of work at once; more are refused rather than queued."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._finished = threading.Condition(self._lock)
        self._queue: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._threads = 0
        self._promised = 0  # work given and not finished: above `_threads`, another thread is needed

    def submit(self, work: Callable[[], None]) -> bool:
        """False when all are busy and no more may be made."""
        with self._lock:
            if self._promised >= self._limit:
                return False
            self._promised += 1
            needed = self._promised > self._threads
            if needed:
                self._threads += 1
        self._queue.put(work)
        if needed:
            try:
                threading.Thread(target=self._work, name="ttrpc-call", daemon=True).start()
            except RuntimeError:  # the cgroup's limit of threads: those we have take it, unless there are none
                with self._lock:
                    self._threads -= 1
                    alone = self._threads == 0
                if alone:
                    with contextlib.suppress(Empty):
                        self._queue.get_nowait()
                        with self._lock:
                            self._promised -= 1
                    return False
        return True

    def wait_idle(self, timeout: float) -> bool:
        with self._lock:
            return self._finished.wait_for(lambda: self._promised == 0, timeout)

    def close(self) -> None:
        with self._lock:
            threads = self._threads
        for _ in range(threads):
            self._queue.put(None)

    def _work(self) -> None:
        while True:
            try:
                work = self._queue.get(timeout=_IDLE)
            except Empty:
                with self._lock:
                    # Work given between the timeout and this lock is promised to one thread: stay for it.
                    if self._promised >= self._threads:
                        continue
                    self._threads -= 1
                return
            if work is None:
                with self._lock:
                    self._threads -= 1
                return
            try:
                work()
            finally:
                with self._lock:
                    self._promised -= 1
                    self._finished.notify_all()
