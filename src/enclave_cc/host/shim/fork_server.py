"""A warm process of the node that shims are forked from: they share its pages, and have loaded all they need at once.

    containerd-shim-rune-v2 fork-server

Optional: `start` asks it when it listens, and otherwise makes the shim itself. Its socket's name tells which code it has
loaded, so that a shim never comes from an older installation. Only root can ask: the directory and the socket are root's.
"""

from __future__ import annotations

import _socket
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from enclave_cc.host.shim.arguments import Arguments

    Serve = Callable[[Arguments, str, int, str], None]

_FRAME_LIMIT = 1 << 20
_ACK = b"forked"
_DEADLINE = 2.0
_SEPARATOR = b"\0\0"


def address() -> str:
    """Differs with the place and the age of the code."""
    from enclave_cc.host.shim import bootstrap

    about = os.stat(__file__)  # noqa: PTH116
    try:
        from _blake2 import blake2b
    except ImportError:
        from hashlib import blake2b
    code = blake2b(f"{__file__} {about.st_mtime_ns} {about.st_ino}".encode(), digest_size=8).hexdigest()
    return f"{bootstrap.SOCKETS}/rune-{code}"


def ask(arguments: Arguments, group: str, listener: int, path: str) -> bool:
    """Has the fork server make the shim; False when there is none, and then nothing was made."""
    import array

    client = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
    try:
        client.settimeout(_DEADLINE)
        client.connect(address())
        words = [arguments.namespace, arguments.address, arguments.id, group, path, os.getcwd()]  # noqa: PTH109
        members = [b"\0".join(map(os.fsencode, words)), b"\0".join(b"%s=%s" % item for item in os.environb.items())]
        client.sendmsg([_SEPARATOR.join(members)], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, array.array("i", [listener]))])
        return client.recv(len(_ACK)) == _ACK
    except OSError:
        return False
    finally:
        client.close()


def run(serve: Serve) -> None:
    """Answers until it is killed. Raises `OSError` when another listens already."""
    import gc
    import signal
    import socket

    _preload()
    path = address()
    os.makedirs(os.path.dirname(path), mode=0o711, exist_ok=True)  # noqa: PTH103, PTH120
    server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    os.fchmod(server.fileno(), 0o600)
    try:
        server.bind(path)
    except OSError:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
            if probe.connect_ex(path) == 0:
                raise
        os.unlink(path)  # noqa: PTH108 - left by one that was killed
        server.bind(path)
    server.listen(64)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # shims are nobody's to wait for
    gc.collect()
    gc.freeze()  # a collection in a fork would copy the pages that hold these objects
    while True:
        client, _ = server.accept()
        with client:
            client.settimeout(_DEADLINE)
            try:
                _answer(client, server, serve)
            except (OSError, ValueError):
                continue


def _answer(client: object, server: object, serve: Serve) -> None:
    import signal
    import socket

    assert isinstance(client, socket.socket)  # noqa: S101 - for the type checker; no socket at import time
    assert isinstance(server, socket.socket)  # noqa: S101
    data, descriptors, _, _ = socket.recv_fds(client, _FRAME_LIMIT, 1)
    try:
        words, _, environment = data.partition(_SEPARATOR)
        namespace, containerd, identifier, group, path, directory = map(os.fsdecode, words.split(b"\0"))
        variables = dict(item.split(b"=", 1) for item in environment.split(b"\0") if b"=" in item)
        if len(descriptors) != 1:
            raise ValueError("no listener came along")
        if os.fork() == 0:
            try:
                server.close()
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                os.environb.clear()
                os.environb.update(variables)
                os.set_inheritable(descriptors[0], False)
                os.setsid()
                os.chdir(directory)
                from enclave_cc.host.shim.arguments import Arguments

                client.send(_ACK)
                client.close()
                serve(Arguments("start", namespace, containerd, identifier), group, descriptors[0], path)
            finally:
                os._exit(0)
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def _preload() -> None:
    """All that a pod's shim may come to need, so that its forks share it."""
    import tomllib  # noqa: F401

    from enclave_cc.host.sandbox import agent_client, control_client, enclaves, init_data, streams  # noqa: F401
    from enclave_cc.host.shim import app_container, oom, server, stats  # noqa: F401
