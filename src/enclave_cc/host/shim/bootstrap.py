"""`start`: prints where the shim of the pod listens, after making one if there is none.

containerd waits for it, so it imports next to nothing: `socket`, `json` and `hashlib` are 8 ms, `dataclasses` 20. The
server is a fork, which loads what it needs while containerd connects.
"""

from __future__ import annotations

import _socket
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from enclave_cc.host.shim.arguments import Arguments

SOCKETS = "/run/containerd/s"  # containerd's own place for them
SUFFIX = "-rune"  # tells ours from other shims' there
_BACKLOG = 128
_SANDBOX_ID = "io.kubernetes.cri.sandbox-id"


def start(arguments: Arguments, serve: Callable[[Arguments, str, int, str], None]) -> None:
    """Called in the bundle. `serve(arguments, group, listener, path)` is called in the new process, which ends with it;
    `listener` is a listening socket's descriptor. Raises `OSError`, `ValueError`.
    """
    group = read_group(arguments.id)
    path = socket_path(arguments, group)
    listener = listen(path)
    if listener is not None:
        from enclave_cc.host.shim import fork_server

        words = (arguments.namespace, arguments.address, arguments.id, group, path)
        if not fork_server.ask("shim", words, [listener]) and os.fork() == 0:
            try:
                os.setsid()
                null = os.open("/dev/null", os.O_RDWR)
                for number in (0, 1, 2):
                    os.dup2(null, number)
                os.close(null)
                serve(arguments, group, listener, path)
            finally:
                os._exit(0)
        os.close(listener)
    address = f"unix://{path}"
    with open("address", "w") as file:  # noqa: PTH123 - containerd 1.6 finds us there when it restarts
        file.write(address)
    os.write(1, describe(address, os.environ.get("MAX_SHIM_VERSION", "")).encode())


def describe(address: str, newest: str) -> str:
    """What `start` prints: JSON for a containerd that knows version 3 of the protocol (2.x), else the address alone."""
    if newest.isdigit() and int(newest) >= 3:
        return f'{{"version": 3, "address": "{address}", "protocol": "ttrpc"}}'
    return address


def read_group(identifier: str) -> str:
    """The pod of the bundle that we stand in: its sandbox's id, or the container's own. Raises `OSError`, `ValueError`."""
    with open("config.json", "rb") as file:  # noqa: PTH123
        text = file.read()
    if _SANDBOX_ID.encode() not in text:
        return identifier
    import json

    annotations = json.loads(text).get("annotations") or {}
    return str(annotations.get(_SANDBOX_ID) or identifier)


def socket_path(arguments: Arguments, group: str) -> str:
    """One for each containerd, namespace and pod."""
    try:
        from _blake2 import blake2b  # what hashlib would give us, without loading libcrypto
    except ImportError:
        from hashlib import blake2b
    whole = f"{arguments.address}/{arguments.namespace}/{group}"
    return f"{SOCKETS}/{blake2b(whole.encode(), digest_size=32).hexdigest()}{SUFFIX}"


def listen(path: str) -> int | None:
    """The descriptor of a listening socket at `path`; None when a shim answers there."""
    os.makedirs(SOCKETS, mode=0o711, exist_ok=True)  # noqa: PTH103
    while True:
        listener = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
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
            return listener.detach()


def _answers(path: str) -> bool:
    probe = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    try:
        probe.setblocking(False)
        probe.connect(path)
    except BlockingIOError:
        return True  # a full queue is a hung shim's: containerd's own calls to it have deadlines
    except OSError:
        return False
    finally:
        probe.close()
    return True
