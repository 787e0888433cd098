"""The shim's log: lines into the FIFO `log` of its bundle, which containerd copies into its own. No secret gets here."""

from __future__ import annotations

import os
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

from enclave_cc.errors import foreign


class Log:
    """Opened to read as well, so that it outlives a restart of containerd; lines that nobody takes are dropped."""

    def __init__(self, path: Path | None) -> None:
        self._descriptor = -1
        self._lock = threading.Lock()
        if path is not None:
            with suppress(OSError):
                self._descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)

    def write(self, level: str, message: str, **fields: object) -> None:
        """`level`: info, warning or error."""
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        parts = [f'time="{stamp}" level={level} msg={_quote(message)} runtime=io.containerd.rune.v2']
        parts += [f"{name}={_quote(str(value))}" for name, value in fields.items()]
        line = (" ".join(parts) + "\n").encode()
        with self._lock, suppress(OSError):
            if self._descriptor >= 0:
                os.write(self._descriptor, line)
            else:
                sys.stderr.buffer.write(line)


def _quote(text: str) -> str:
    clean = foreign(text)
    return (
        clean
        if clean.isascii() and clean.replace("-", "").isalnum()
        else '"' + clean.replace("\\", "\\\\").replace('"', '\\"') + '"'
    )
