"""ttrpc over unix sockets and TCP: the answering side.

    server = Server("/run/agent.sock", {"pkg.Service": {"Method": handle}})
    server.start()

Each connection is read in a thread of its own and handlers run in a bounded set of workers, so it also serves peers
that multiplex (containerd's Go client), and no slow peer delays another. Methods are unary; the streams of `wire.ttrpc`
are refused with UNIMPLEMENTED.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import stat
import sys
import threading
import time
from collections.abc import Callable, Mapping

from enclave_cc import errors
from enclave_cc.errors import EnclaveCcError, EnvironmentFault, PeerError, UsageError
from enclave_cc.record import record
from enclave_cc.transport.ttrpc import LONGEST_WAIT, Address, name_of
from enclave_cc.transport.workers import Workers
from enclave_cc.wire.pb import ttrpc as pb
from enclave_cc.wire.ttrpc import status
from enclave_cc.wire.ttrpc.connection import Connection, Refusal, RequestReceived, Role

_CHUNK = 1 << 16
_BACKLOG = 128


@record
class Call:
    """What a handler may know of its call. `deadline` is on the monotonic clock; None: the caller set no limit."""

    service: str
    method: str
    payload: bytes
    metadata: tuple[tuple[str, str], ...] = ()
    deadline: float | None = None


@record
class WithCall:
    """A handler that takes the whole `Call` rather than its payload."""

    handle: Callable[[Call], bytes]


Handler = Callable[[bytes], bytes] | WithCall
Services = Mapping[str, Mapping[str, Handler]]


def _log_to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


class Server:
    """Serves `services` on `address`: a unix socket's path (made with mode 0600) or (host, port).

    `deadline` bounds the arrival of a frame that has begun and the sending of an answer; `idle` how long a silent
    connection may stay (None: for ever, as containerd keeps its own). Above `max_connections` a new connection is
    closed at once; above `max_calls` calls in flight a call is answered RESOURCE_EXHAUSTED. `whole_errors`: errors carry
    the detail that only our own peers can read; containerd 2 appends "proto: not found" to the text of one that has it.
    """

    def __init__(
        self,
        address: Address,
        services: Services,
        *,
        deadline: float = 30.0,
        idle: float | None = None,
        max_connections: int = 64,
        max_calls: int = 128,
        whole_errors: bool = True,
        log: Callable[[str], None] = _log_to_stderr,
    ) -> None:
        self.deadline, self.idle, self.log, self.whole_errors = deadline, idle, log, whole_errors
        self._services = services
        self._requested = address
        self._workers = Workers(max_calls)
        self._max_connections = max_connections
        self._lock = threading.Lock()
        self._peers: set[_Peer] = set()
        self._listener: socket.socket | None = None
        self._stopping = threading.Event()

    @property
    def address(self) -> Address:
        """Where it listens; for port 0, the port that the kernel gave."""
        if self._listener is None or isinstance(self._requested, str):
            return self._requested
        host, port = self._listener.getsockname()[:2]
        return host, port

    def start(self, made: socket.socket | None = None) -> None:
        """Listens, or takes over a socket that listens already, and returns.

        Raises `EnvironmentFault("environment")` when the address cannot be had.
        """
        if self._listener is not None:
            raise UsageError("wrong-state", "this ttrpc server was started before")
        if made is not None:
            self._listener = made
            threading.Thread(target=self._accept, name="ttrpc-accept", daemon=True).start()
            return
        family = socket.AF_UNIX if isinstance(self._requested, str) else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            if isinstance(self._requested, str):
                _listen_at(listener, self._requested)
            else:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                listener.bind(self._requested)
                listener.listen(_BACKLOG)
        except OSError as error:
            listener.close()
            raise EnvironmentFault("environment", f"cannot listen on {name_of(self._requested)}: {error.strerror}") from error
        self._listener = listener
        threading.Thread(target=self._accept, name="ttrpc-accept", daemon=True).start()

    def drain(self, timeout: float) -> bool:
        """Waits until no call is in flight, at most `timeout` seconds; False when some still are."""
        return self._workers.wait_idle(timeout)

    def close(self) -> None:
        """Stops listening and closes every connection. Handlers that run are not waited for."""
        with self._lock:
            if self._stopping.is_set():
                return
            self._stopping.set()
            peers = list(self._peers)
        if self._listener is not None:
            # shutdown wakes accept(); close alone would leave it asleep on the old descriptor.
            with contextlib.suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
            if isinstance(self._requested, str):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self._requested)  # noqa: PTH108 - pathlib costs 10 ms at the start of every enclave
        for peer in peers:
            peer.close()
        self._workers.close()

    def __enter__(self) -> Server:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _accept(self) -> None:
        listener = self._listener
        while listener is not None and not self._stopping.is_set():
            try:
                accepted, _peer = listener.accept()
            except OSError as error:
                if self._stopping.is_set():
                    return
                self.log(f"ttrpc: accept failed: {error.strerror}")
                time.sleep(0.05)  # out of descriptors, most likely: let some be closed
                continue
            peer = _Peer(self, accepted)
            with self._lock:
                full = self._stopping.is_set() or len(self._peers) >= self._max_connections
                if not full:
                    self._peers.add(peer)
            if full:
                self.release(peer)
                continue
            try:
                threading.Thread(target=peer.serve, name="ttrpc-peer", daemon=True).start()
            except RuntimeError:  # no more threads: the limit of the cgroup
                self.release(peer)

    def release(self, peer: _Peer) -> None:
        """The one place that closes a peer's descriptor: nobody polls it any more."""
        peer.release()
        with self._lock:
            self._peers.discard(peer)

    def dispatch(self, peer: _Peer, event: RequestReceived) -> None:
        """Finds the handler and gives the call to a worker; answers at once when there is none."""
        request = event.request
        handler = self._services.get(request.service, {}).get(request.method)
        if handler is None or not event.unary:
            what = f"{errors.foreign(request.service)}/{errors.foreign(request.method)}"
            reason = "is not known here" if handler is None else "is unary"
            peer.answer(event.stream_id, status.make(errors.Status.UNIMPLEMENTED, f"method {what} {reason}"))
            return
        deadline = time.monotonic() + request.timeout_nano / 1e9 if request.timeout_nano > 0 else None
        pairs = tuple((pair.key, pair.value) for pair in request.metadata)
        call = Call(request.service, request.method, request.payload, pairs, deadline)
        found = handler  # the lambda must not see a later loop's value
        if not self._workers.submit(lambda: self._run(peer, event.stream_id, found, call)):
            peer.answer(event.stream_id, status.make(errors.Status.RESOURCE_EXHAUSTED, "too many calls at once"))

    def _run(self, peer: _Peer, stream_id: int, handler: Handler, call: Call) -> None:
        answer: bytes | pb.Status
        try:
            answer = handler.handle(call) if isinstance(handler, WithCall) else handler(call.payload)
        except EnclaveCcError as error:
            answer = status.from_error(error, whole=self.whole_errors)
        except Exception as error:  # noqa: BLE001 - a handler's bug must not take the server, nor its text the host
            self.log(f"ttrpc: {call.service}/{call.method}: {_where(error)}")
            fault = UsageError("internal", f"{call.method} failed unexpectedly")
            answer = status.from_error(fault, whole=self.whole_errors)
        peer.answer(stream_id, answer)


class _Peer:
    """One accepted connection: a reading thread, and answers from any worker under one lock."""

    def __init__(self, server: Server, accepted: socket.socket) -> None:
        self._server = server
        self._socket = accepted
        self._connection = Connection(Role.SERVER)
        self._lock = threading.Lock()  # the connection's state and the order of sending
        if accepted.family == socket.AF_INET:
            with contextlib.suppress(OSError):
                accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def serve(self) -> None:
        try:
            while True:
                data = self._read()
                if not data:
                    return
                with self._lock:
                    events = self._connection.receive(data)
                for event in events:
                    if isinstance(event, RequestReceived):
                        self._server.dispatch(self, event)
                    elif isinstance(event, Refusal):
                        self._send(event.answer)
        except PeerError as error:
            self._server.log(f"ttrpc: connection closed: {error.what}")
        except OSError:
            pass  # the peer is gone, or `close` was called
        finally:
            self._server.release(self)

    def answer(self, stream_id: int, answer: bytes | pb.Status) -> None:
        """Sends a call's end. A peer that does not take it within the deadline loses its connection."""
        try:
            with self._lock:
                if not self._connection.is_open(stream_id):
                    return
                if isinstance(answer, pb.Status):
                    encoded = self._connection.send_status(stream_id, answer)
                else:
                    try:
                        encoded = self._connection.send_response(stream_id, answer)
                    except UsageError as error:
                        encoded = self._connection.send_status(stream_id, status.from_error(error, whole=self._server.whole_errors))
                self._send_locked(encoded)
        except OSError:
            self.close()

    def close(self) -> None:
        """Wakes the reading thread, which then releases the connection."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def release(self) -> None:
        self.close()
        self._socket.close()

    def _read(self) -> bytes:
        # poll and MSG_DONTWAIT rather than settimeout: a timeout belongs to the socket, and workers send on it too.
        wait = self._server.deadline if self._connection.in_frame else self._server.idle
        ends = None if wait is None else time.monotonic() + wait
        while True:
            _wait(self._socket, select.POLLIN, ends)
            try:
                return self._socket.recv(_CHUNK, socket.MSG_DONTWAIT)
            except BlockingIOError:
                continue

    def _send(self, data: bytes) -> None:
        with self._lock:
            self._send_locked(data)

    def _send_locked(self, data: bytes) -> None:
        ends = time.monotonic() + self._server.deadline
        rest = memoryview(data)
        while rest:
            try:
                sent = self._socket.send(rest, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            except BlockingIOError:
                _wait(self._socket, select.POLLOUT, ends)
                continue
            rest = rest[sent:]


def _wait(sock: socket.socket, event: int, ends: float | None) -> None:
    """Until the socket is ready. Raises TimeoutError (an OSError) after `ends`."""
    poll = select.poll()
    descriptor = sock.fileno()
    if descriptor < 0:
        raise OSError("closed")
    poll.register(descriptor, event)
    left = None if ends is None else min(max(0.0, ends - time.monotonic()), LONGEST_WAIT) * 1000
    if not poll.poll(left):
        raise TimeoutError


def _listen_at(listener: socket.socket, path: str) -> None:
    """Whoever sees the socket's file can connect: it gets its name when it listens, in place of a stale one."""
    coming = f"{path}.new"
    for name in (path, coming):
        with contextlib.suppress(FileNotFoundError):
            if not stat.S_ISSOCK(os.lstat(name).st_mode):
                raise FileExistsError(errno.EEXIST, "something else than a socket lies there")
    with contextlib.suppress(FileNotFoundError):
        os.unlink(coming)  # noqa: PTH108
    os.fchmod(listener.fileno(), 0o600)  # Linux gives the socket's file the mode of the socket
    listener.bind(coming)
    listener.listen(_BACKLOG)
    os.rename(coming, path)  # noqa: PTH104


def _where(error: BaseException) -> str:
    """Type and place of a bug, without its text: that may hold a secret."""
    place = error.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    line = "?" if place is None else f"{place.tb_frame.f_code.co_filename.rsplit('/', 1)[-1]}:{place.tb_lineno}"
    return f"{type(error).__name__} at {line}"
