"""Boot init as the host sees it: its control socket and status file (docs/formats/control.md)."""

from __future__ import annotations

import array
import os
import socket
import time
from collections.abc import Sequence
from pathlib import Path

from enclave_cc.errors import EnclaveCcError, EnvironmentFault, PeerError, foreign
from enclave_cc.wire.control import frame, message
from enclave_cc.wire.control.status import Status, StatusError


class ControlConnection:
    """One connection, one request. Descriptors that came with an answer are the caller's to close."""

    def __init__(self, path: Path, *, deadline: float) -> None:
        self._deadline = deadline
        self._reader = frame.FrameReader()
        self._replies: list[message.Reply] = []
        self._descriptors: list[int] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(deadline)
        try:
            self._socket.connect(str(path))
        except OSError as error:
            self._socket.close()
            raise EnvironmentFault("wrong-state", f"the container does not take requests: {error.strerror}") from error

    def send(self, request: message.Request, descriptors: Sequence[int] = ()) -> None:
        """Raises `EnvironmentFault`, `PeerError("too-large")`. A boot init that closed already may have said why: `receive`."""
        data = message.encode_request(request)
        try:
            sent = socket.send_fds(self._socket, [data], list(descriptors)) if descriptors else self._socket.send(data)
            if sent < len(data):  # sending nothing fails too when the answer came already and the other side has closed
                self._socket.sendall(data[sent:])
        except BrokenPipeError:
            return
        except OSError as error:
            raise EnvironmentFault("app-died", f"boot init does not take the request: {error.strerror}") from error

    def receive(self, *, deadline: float | None = None) -> tuple[message.Reply, list[int]]:
        """The next answer and its descriptors; without a deadline it waits until one comes.

        Raises the coded error that boot init answered, `PeerError` for an answer that is none, and
        `EnvironmentFault("app-died")` when it is gone.
        """
        until = None if deadline is None else time.monotonic() + deadline
        while not self._replies:
            left = None if until is None else until - time.monotonic()
            if left is not None and left <= 0:
                raise EnvironmentFault("deadline", f"boot init did not answer within {deadline:g} s")
            self._socket.settimeout(left)
            try:
                data, ancillary, _, _ = self._socket.recvmsg(1 << 16, socket.CMSG_SPACE(4 * 4), socket.MSG_CMSG_CLOEXEC)
            except TimeoutError:
                continue
            except OSError as error:
                raise EnvironmentFault("app-died", f"boot init: {error.strerror}") from error
            for level, kind, content in ancillary:
                if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                    received = array.array("i")
                    received.frombytes(content[: len(content) - len(content) % received.itemsize])
                    self._descriptors += received
            if not data:
                raise EnvironmentFault("app-died", "boot init closed the connection")
            self._replies += [message.parse_reply(body) for body in self._reader.feed(data)]
        reply, descriptors = self._replies.pop(0), self._descriptors
        self._descriptors = []
        if isinstance(reply, message.Refused):
            raise Refusal(reply)
        return reply, descriptors

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()
        for descriptor in self._descriptors:
            os.close(descriptor)
        self._descriptors = []

    def __enter__(self) -> ControlConnection:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Refusal(PeerError):
    """Boot init's coded refusal; `exit_code` is what a command that got it exits with (126 and 127 for an exec)."""

    def __init__(self, reply: message.Refused) -> None:
        super().__init__(reply.error.code, foreign(reply.error.what), foreign(reply.error.fix))
        self.exit_code = reply.exit_code


def ask(path: Path, request: message.Request, *, deadline: float) -> tuple[message.Reply, list[int]]:
    """One request, one answer."""
    with ControlConnection(path, deadline=deadline) as connection:
        connection.send(request)
        return connection.receive(deadline=deadline)


def read_status(path: Path) -> Status | None:
    """The status file; None before boot init has written it. Raises `PeerError` for one that is none."""
    try:
        with path.open("rb") as file:
            return Status.parse(file.read(frame.BODY_LIMIT + 1))
    except FileNotFoundError:
        return None


def to_error(error: StatusError) -> EnclaveCcError:
    """Boot init's reason under its own code."""
    return PeerError(error.code, foreign(error.what), foreign(error.fix))
