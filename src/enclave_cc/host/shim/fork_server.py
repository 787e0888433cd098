"""A warm process of the node that shims are forked from: they share its pages, and have loaded all they need at once.

    containerd-shim-rune-v2 fork-server

The snapshotter runs it, as that is on every node, with a pipe at its standard input that ends it. Whoever wants a fork
asks when it listens, and otherwise does without: a server that is absent, dead, hung, of another installation or in other
surroundings (`surroundings.py`) costs speed alone. Its socket's name tells which code it has loaded, and nobody asks one of
other code than his own; it ends when its code is replaced, to be started anew.

    asker -> fork   one message, NUL between its parts: number of words, role, working directory, words, environment;
                    descriptors beside it
    fork -> asker   "ready", when it stands where the asker stands
    asker -> fork   "go"; a fork that does not get it ends, so that nothing is done twice when an asker gave up waiting

The server itself only accepts and forks: nothing that belongs to a pod is ever in it, and no request can hold it up.
Only root can ask: the directory and the socket are root's, and both sides look whom they have before them.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # `signal` makes enumerations, which forks would copy
import _socket
import errno
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import NoReturn

    # What a fork does, by role: words and descriptors of the request.
    Roles = Mapping[str, Callable[[Sequence[str], Sequence[int]], None]]

_FRAME_LIMIT = 1 << 20
_READY, _GO = b"ready", b"go"
_DEADLINE = 2.0  # seconds for which an asker waits, and a fork
_LOOK = 30_000  # milliseconds between looks whether the code was replaced
_MAX_DESCRIPTORS = 4
_CREDENTIALS = 12  # bytes of struct ucred: pid, uid, gid
_PREFIX = "rune-"  # of sockets' names
_PACKAGES = __file__.rsplit("/", 4)[0]


def identify_code() -> str:
    """Of what lies on disk: differs with its place and its age. A directory of packages changes with each that is installed."""
    about, packages = os.stat(__file__), os.stat(_PACKAGES)  # noqa: PTH116
    try:
        from _blake2 import blake2b
    except ImportError:
        from hashlib import blake2b
    text = f"{__file__} {about.st_mtime_ns} {about.st_ino} {packages.st_mtime_ns}"
    return blake2b(text.encode(), digest_size=8).hexdigest()


LOADED = identify_code()  # a shim that an upgrade leaves running must not ask the new code's server


def address(code: str = "") -> str:
    """Of the server that has loaded this code: our own, if none is named."""
    from enclave_cc.host.shim import bootstrap

    return f"{bootstrap.SOCKETS}/{_PREFIX}{code or LOADED}"


def ask(role: str, words: Sequence[str], descriptors: Sequence[int], *, code: str = "") -> bool:
    """Has the fork server make a process that does what `role` says; False when that was not to be had, and then nothing
    was done.
    """
    import array

    client = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
    try:
        client.settimeout(_DEADLINE)
        client.connect(address(code))
        if _peer_of(client)[1] != os.geteuid():
            return False
        head = [str(len(words)), role, os.getcwd(), *words]  # noqa: PTH109
        members = [*map(os.fsencode, head), *(b"%s=%s" % item for item in os.environb.items())]
        rights = (_socket.SOL_SOCKET, _socket.SCM_RIGHTS, array.array("i", descriptors))
        client.sendmsg([b"\0".join(members)], [rights] if descriptors else [])
        return client.recv(len(_READY)) == _READY and client.send(_GO) == len(_GO)
    except OSError:
        return False
    finally:
        client.close()


def _peer_of(connection: _socket.socket) -> tuple[int, int]:
    """(pid, uid) of the other side."""
    found = memoryview(connection.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, _CREDENTIALS)).cast("i")
    return found[0], found[1]


# --- the server


def run(roles: Roles) -> None:
    """Answers until it is killed, or its standard input hangs up if that is a pipe, or its code was replaced.

    Raises `OSError` when another listens already.
    """
    import gc
    import select
    import stat

    from enclave_cc.host.shim import preloading

    path = address()
    preloading.load_all()
    listener = _listen(path)
    for name in list(os.environb):  # a fork's are its asker's
        del os.environb[name]
    _signal.signal(_signal.SIGCHLD, _signal.SIG_IGN)  # forks are nobody's to wait for
    poll = select.poll()
    poll.register(listener, select.POLLIN)
    if stat.S_ISFIFO(os.fstat(0).st_mode):
        poll.register(0, 0)  # hang-ups are always told
    gc.collect()
    gc.freeze()  # a collection in a fork would copy the pages that hold these objects
    try:
        while (0, select.POLLHUP) not in (ready := poll.poll(_LOOK)):
            if ready:
                _take(listener, roles)
            elif _is_replaced():
                return
    finally:
        os.unlink(path)  # noqa: PTH108


def _is_replaced() -> bool:
    try:
        return identify_code() != LOADED
    except OSError:
        return True


def _listen(path: str) -> _socket.socket:
    """Raises `OSError` when another listens there. Takes away what killed ones left, of whatever code."""
    directory = os.path.dirname(path)  # noqa: PTH120
    os.makedirs(directory, mode=0o711, exist_ok=True)  # noqa: PTH103
    for name in os.listdir(directory):  # noqa: PTH208
        if name.startswith(_PREFIX) and _is_dead(f"{directory}/{name}"):
            os.unlink(f"{directory}/{name}")  # noqa: PTH108
    listener = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
    try:
        os.fchmod(listener.fileno(), 0o600)
        listener.bind(path)
        listener.listen(64)
    except OSError:
        listener.close()
        raise
    listener.setblocking(False)
    return listener


def _is_dead(path: str) -> bool:
    """Whether nobody listens. Waits for nothing: a hung one whose queue is full has listened."""
    probe = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
    try:
        probe.setblocking(False)
        return probe.connect_ex(path) == errno.ECONNREFUSED
    finally:
        probe.close()


def _take(listener: _socket.socket, roles: Roles) -> None:
    try:
        descriptor = listener._accept()[0]  # type: ignore[attr-defined]
    except OSError:
        return  # the asker has gone
    try:
        if os.fork() == 0:
            _live(_socket.socket(fileno=descriptor), roles)
    except OSError:
        pass  # no process more for now: the asker does without
    finally:
        os.close(descriptor)


def _live(client: _socket.socket, roles: Roles) -> NoReturn:
    """The fork's life. It hands nothing of the server's on: neither descriptors nor environment."""
    try:
        found = _prepare(client)
        client.close()
        if found is not None:
            role, words, descriptors = found
            roles[role](words, descriptors)
    finally:
        os._exit(0)  # whatever went wrong: whoever asked sees that nobody is ready


def _prepare(client: _socket.socket) -> tuple[str, list[str], list[int]] | None:
    """What to do, once we stand where the asker stands and it has said "go"; else None, or `OSError`, `ValueError`."""
    from enclave_cc.host.shim import surroundings

    client.settimeout(_DEADLINE)
    pid, uid = _peer_of(client)
    if uid != os.geteuid():
        return None
    data, ancillary, _, _ = client.recvmsg(_FRAME_LIMIT, _socket.CMSG_SPACE(4 * _MAX_DESCRIPTORS), _socket.MSG_CMSG_CLOEXEC)
    descriptors = [number for _, _, content in ancillary for number in memoryview(content).cast("i")]
    count, role, directory, *rest = data.split(b"\0")
    words, environment = rest[: int(count)], rest[int(count) :]
    surroundings.close_all_but({client.fileno(), *descriptors})
    _signal.signal(_signal.SIGCHLD, _signal.SIG_DFL)
    surroundings.take_over(pid)
    for item in environment:
        name, equals, value = item.partition(b"=")
        if equals:
            os.environb[name] = value
    os.setsid()
    os.chdir(directory)
    client.send(_READY)
    return (role.decode(), list(map(os.fsdecode, words)), descriptors) if client.recv(len(_GO)) == _GO else None
