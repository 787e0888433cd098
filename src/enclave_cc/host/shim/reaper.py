"""Waits for processes and other descriptors in one thread, and calls whoever asked, there."""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Callable

from enclave_cc.host.shim.log import Log

Callback = Callable[[], None]


class Reaper(threading.Thread):
    """A callback is called once, when its descriptor is readable or hung up; it must not wait for anything."""

    def __init__(self, log: Log) -> None:
        super().__init__(name="reaper", daemon=True)
        self._log = log
        self._poll = select.poll()
        self._lock = threading.Lock()
        self._callbacks: dict[int, Callback] = {}
        self._reader, self._writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._poll.register(self._reader, select.POLLIN)

    def watch(self, descriptor: int, callback: Callback) -> None:
        """The descriptor stays its owner's, who must call `forget` before closing it earlier."""
        with self._lock:
            self._callbacks[descriptor] = callback
            self._poll.register(descriptor, select.POLLIN)
        os.write(self._writer, b"x")  # the running poll does not know of it

    def forget(self, descriptor: int) -> None:
        with self._lock:
            if self._callbacks.pop(descriptor, None) is not None:
                self._poll.unregister(descriptor)

    def run(self) -> None:
        while True:
            for descriptor, _ in self._poll.poll():
                if descriptor == self._reader:
                    os.read(self._reader, 4096)
                    continue
                with self._lock:
                    callback = self._callbacks.pop(descriptor, None)
                    if callback is not None:
                        self._poll.unregister(descriptor)
                if callback is None:
                    continue
                try:
                    callback()
                except Exception as error:  # noqa: BLE001 - one container's trouble must not leave the others unwatched
                    self._log.write("error", f"after the end of a process: {type(error).__name__}: {error}")
