"""The agent's log: JSON lines on standard error. The host reads it: no secrets, and no reason that is the owner's."""

from __future__ import annotations

import contextlib
import json
import os
import time

_STDERR = 2


def write(level: str, message: str, **members: str | int | float) -> None:
    """One line. A log that cannot be written stops nothing."""
    line = {"time": round(time.time(), 3), "level": level, "message": message, **members}
    with contextlib.suppress(OSError):
        os.write(_STDERR, json.dumps(line).encode() + b"\n")
