"""The simulated CPU's socket, made before the CPU itself, which takes longer to load than an enclave to start."""

from __future__ import annotations

import contextlib
import os
import socket

_BACKLOG = 128


def listen(path: str | os.PathLike[str]) -> socket.socket:
    """The socket, bound (mode 0666: whoever is no enclave gets nothing): callers wait until it is served."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)  # noqa: PTH108
        listener.bind(os.fspath(path))
        os.chmod(path, 0o666)  # noqa: PTH101, S103
        listener.listen(_BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener
