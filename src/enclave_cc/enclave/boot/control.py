"""The control socket's server side: connections, frames, descriptors (docs/formats/control.md). Decides nothing."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Sequence

from enclave_cc.enclave.boot import log
from enclave_cc.errors import EnclaveCcError, EnvironmentFault, PeerError
from enclave_cc.wire.control import frame, message
from enclave_cc.wire.control.status import StatusError

CONNECTION_LIMIT = 64
REQUEST_DEADLINE = 10.0
_CHUNK = 65536
_FD_LIMIT = 8  # more than any request has, so that too many are seen and closed


class Connection:
    """One supervisor connection: one request in, answers out. Never blocks."""

    __slots__ = ("_fds", "_reader", "_socket", "deadline", "requested")

    def __init__(self, accepted: socket.socket) -> None:
        accepted.setblocking(False)
        self._socket = accepted
        self._reader = frame.FrameReader()
        self._fds: list[int] = []
        self.requested = False
        self.deadline: float | None = time.monotonic() + REQUEST_DEADLINE

    def fileno(self) -> int:
        return self._socket.fileno()

    def receive(self) -> message.Request | None:
        """The request once it is whole. Raises `PeerError`, and `EOFError` when the peer left."""
        try:
            data, fds, flags, _ = socket.recv_fds(self._socket, _CHUNK, _FD_LIMIT)
        except BlockingIOError:
            return None
        except OSError as error:
            raise EOFError from error
        for fd in fds:
            os.set_inheritable(fd, False)
        self._fds += fds
        if not data:
            raise EOFError
        if self.requested:
            raise PeerError("malformed", "a control connection carries one request")
        if flags & socket.MSG_CTRUNC or len(self._fds) > _FD_LIMIT:
            raise PeerError("too-large", "the control request has too many descriptors")
        bodies = self._reader.feed(data)
        if not bodies:
            return None
        if len(bodies) > 1 or self._reader.pending:
            raise PeerError("malformed", "a control connection carries one request")
        request = message.parse_request(bodies[0])
        self.requested = True
        self.deadline = None
        return request

    def take_fds(self, count: int) -> list[int]:
        """The descriptors that came with the request; the caller's to close. Raises `PeerError` for another number."""
        if len(self._fds) != count:
            raise PeerError("malformed", f"the request came with {len(self._fds)} descriptors, not {count}")
        fds, self._fds = self._fds, []
        return fds

    def reply(self, reply: message.Reply, fds: Sequence[int] = ()) -> bool:
        """Sends an answer; False when the peer left or does not read."""
        encoded = message.encode_reply(reply)
        try:
            if fds:
                return socket.send_fds(self._socket, [encoded], list(fds)) == len(encoded)
            return self._socket.send(encoded) == len(encoded)
        except OSError:
            return False

    def refuse(self, error: EnclaveCcError, exit_code: int | None = None) -> None:
        """Sends the error as the last answer."""
        code = error.exit if exit_code is None else exit_code
        self.reply(message.Refused(StatusError(error.code, error.what, error.fix), code))

    def close(self) -> None:
        for fd in self._fds:
            os.close(fd)
        self._fds.clear()
        self._socket.close()


class Listener:
    """Listens on `path` (mode 0600), which is not there before it takes connections: the host waits for it to appear."""

    def __init__(self, path: str) -> None:
        self._path = path
        try:
            scratch = f"{path}.new"
            with contextlib.suppress(FileNotFoundError):
                os.unlink(scratch)
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            mask = os.umask(0o177)
            try:
                self._socket.bind(scratch)
            finally:
                os.umask(mask)
            self._socket.listen(CONNECTION_LIMIT)
            os.rename(scratch, path)  # over that of an earlier boot init in the same directory
            self._socket.setblocking(False)
        except OSError as error:
            raise EnvironmentFault("environment", f"cannot listen on the control socket: {error.strerror}") from error

    def fileno(self) -> int:
        return self._socket.fileno()

    def accept(self, present: int) -> Connection | None:
        """The next connection, if there is one and `present` connections leave room for it."""
        try:
            accepted, _ = self._socket.accept()
        except OSError:
            return None
        if present >= CONNECTION_LIMIT:
            log.write("warning", "a control connection was closed: too many at once")
            accepted.close()
            return None
        return Connection(accepted)

    def close(self) -> None:
        self._socket.close()
        with contextlib.suppress(OSError):
            os.unlink(self._path)
