"""`start`: prints where the shim of the pod listens, after making one if there is none.

Imports little: containerd waits for it. The server is a fork, which loads what it needs while containerd connects.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Callable

from enclave_cc.host.shim.arguments import Arguments

SOCKETS = "/run/containerd/s"  # containerd's own place for them
_BACKLOG = 128
_SANDBOX_ID = "io.kubernetes.cri.sandbox-id"


def start(arguments: Arguments, serve: Callable[[Arguments, str, socket.socket, str], None]) -> None:
    """Called in the bundle. `serve(arguments, group, listener, path)` is called in the new process. Raises `OSError`."""
    group = read_group(arguments.id)
    path = socket_path(arguments, group)
    listener = _listen(path)
    if listener is not None:
        sys.stdout.flush()
        if os.fork() == 0:
            os.setsid()
            null = os.open("/dev/null", os.O_RDWR)
            for number in (0, 1, 2):
                os.dup2(null, number)
            os.close(null)
            serve(arguments, group, listener, path)
            os._exit(0)
    address = f"unix://{path}"
    with open("address", "w") as file:  # noqa: PTH123 - containerd 1.6 finds us there when it restarts
        file.write(address)
    os.write(1, describe(address, os.environ.get("MAX_SHIM_VERSION", "")).encode())


def describe(address: str, newest: str) -> str:
    """What `start` prints: JSON for a containerd that knows version 3 of the protocol (2.x), else the address alone."""
    if newest.isdigit() and int(newest) >= 3:
        return json.dumps({"version": 3, "address": address, "protocol": "ttrpc"})
    return address


def read_group(identifier: str) -> str:
    """The pod of the bundle that we stand in: its sandbox's id, or the container's own. Raises `OSError`, `ValueError`."""
    with open("config.json", "rb") as file:  # noqa: PTH123
        annotations = json.loads(file.read()).get("annotations") or {}
    return str(annotations.get(_SANDBOX_ID) or identifier)


def socket_path(arguments: Arguments, group: str) -> str:
    """One for each containerd, namespace and pod."""
    import hashlib

    return f"{SOCKETS}/{hashlib.sha256(f'{arguments.address}/{arguments.namespace}/{group}'.encode()).hexdigest()}"


def _listen(path: str) -> socket.socket | None:
    """A listening socket at `path`; None when a shim answers there."""
    os.makedirs(SOCKETS, mode=0o711, exist_ok=True)  # noqa: PTH103
    while True:
        listener = socket.socket(socket.AF_UNIX)
        os.fchmod(listener.fileno(), 0o600)
        try:
            listener.bind(path)
        except OSError:
            listener.close()
            if _answers(path):
                return None
            os.unlink(path)  # noqa: PTH108 - left by a shim that was killed
        else:
            listener.listen(_BACKLOG)
            return listener


def _answers(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(path)
        except OSError:
            return False
    return True
