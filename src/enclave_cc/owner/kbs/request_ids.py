"""The id of the request that a thread answers: in its answer's `X-Request-Id`, and in each line it writes to the log."""

from __future__ import annotations

import secrets
from contextvars import ContextVar

HEADER = "X-Request-Id"
CURRENT: ContextVar[str | None] = ContextVar("request id", default=None)


def new_request_id() -> str:
    """Ours alone: a client's own would let it write into the log what it likes."""
    return secrets.token_hex(8)
