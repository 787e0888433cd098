"""Task events to containerd, in the order in which they are published.

A queue and one thread: publishing never waits. An event that containerd does not take (it restarts, say) is tried again
for a while, and those behind it wait: containerd must not see an exit before its start.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from contextlib import suppress

from enclave_cc.errors import EnclaveCcError
from enclave_cc.host.shim.log import Log
from enclave_cc.transport import ttrpc
from enclave_cc.wire.pb import shim_events

_CALL_DEADLINE = 5.0
_RETRY_INTERVAL = 0.5
_LIMIT = 4096


class Publisher:
    """`address`: containerd's ttrpc socket; `patience`: seconds for which an event is tried."""

    def __init__(self, address: str, namespace: str, log: Log, *, patience: float = 60.0) -> None:
        self._namespace = namespace
        self._log = log
        self._patience = patience
        self._client = ttrpc.Client(address, _CALL_DEADLINE, unreachable="environment") if address else None
        self._changed = threading.Condition()
        self._queue: deque[tuple[str, bytes]] = deque()
        self._busy = self._closing = False
        self._thread: threading.Thread | None = None

    def publish(self, event: shim_events.Event) -> None:
        if self._client is None:
            return
        entry = (type(event).__name__, shim_events.wrap(event, self._namespace, time.time_ns()))
        with self._changed:
            if len(self._queue) >= _LIMIT:
                self._log.write("error", "an event was dropped: containerd takes none", event=entry[0])
                return
            self._queue.append(entry)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="events", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def close(self, deadline: float) -> None:
        """Sends what is left, for at most `deadline` seconds; what comes later is not sent."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._queue and not self._busy, deadline)
        if self._client is not None:
            self._client.close()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._busy = False
                self._changed.notify_all()
                if not self._changed.wait_for(lambda: bool(self._queue), 10.0) and not self._queue:
                    self._thread = None  # a thread that has nothing to do costs memory
                    return
                name, request = self._queue.popleft()
                self._busy = True
            self._send(name, request)

    def _send(self, name: str, request: bytes) -> None:
        assert self._client is not None  # noqa: S101 - else nothing is queued
        until = time.monotonic() + self._patience
        while True:
            try:
                self._client.call(shim_events.SERVICE, shim_events.METHOD, request)
            except EnclaveCcError as error:
                if time.monotonic() > until or error.code not in ("environment", "deadline"):
                    self._log.write("error", f"an event was not taken: {error}", event=name)
                    return
            else:
                return
            with self._changed, suppress(RuntimeError):
                self._changed.wait_for(lambda: self._closing, _RETRY_INTERVAL)
                if self._closing:
                    until = min(until, time.monotonic() + _RETRY_INTERVAL)
