"""ttrpc over unix sockets and TCP, blocking, with threads and deadlines.

    client = Client("/run/agent.sock", deadline=5.0)
    answer = client.call("pkg.Service", "Method", request, timeout=30.0)

    server = Server("/run/agent.sock", {"pkg.Service": {"Method": handle}})
    server.start()

A client keeps idle connections and uses one per call in flight, so that any number of threads may call and a slow
call delays no other. A server reads each connection in a thread of its own and runs handlers in a bounded set of
workers, so it also serves peers that multiplex (containerd's Go client). Both are unary; the streams of
`wire.ttrpc` are refused with UNIMPLEMENTED by the server.

Errors: a handler's `EnclaveCcError` reaches the caller as a `PeerError` with the same code. Deadlines are seconds;
`None` waits for ever and is allowed only where it says so.
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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from queue import Empty, SimpleQueue

from enclave_cc import errors
from enclave_cc.errors import EnclaveCcError, EnvironmentFault, PeerError, UsageError
from enclave_cc.wire.pb import ttrpc as pb
from enclave_cc.wire.ttrpc import status
from enclave_cc.wire.ttrpc.connection import Connection, Refusal, RequestReceived, ResponseReceived, Role, StreamFailed

Address = str | tuple[str, int]
_CHUNK = 1 << 16
_BACKLOG = 128
# A worker that had nothing to do for so long ends; the next request starts another.
_WORKER_IDLE = 10.0
# poll(2) counts milliseconds in an int: no single wait can be longer than 24 days.
_LONGEST_WAIT = 20 * 86_400.0


@dataclass(frozen=True, slots=True)
class Call:
    """What a handler may know of its call. `deadline` is on the monotonic clock; None: the caller set no limit."""

    service: str
    method: str
    payload: bytes
    metadata: tuple[tuple[str, str], ...] = ()
    deadline: float | None = None


@dataclass(frozen=True, slots=True)
class WithCall:
    """A handler that takes the whole `Call` rather than its payload."""

    handle: Callable[[Call], bytes]


Handler = Callable[[bytes], bytes] | WithCall
Services = Mapping[str, Mapping[str, Handler]]


class Client:
    """Calls over `address`: a unix socket's path or (host, port).

    `deadline` bounds connecting, and a call for which no timeout is given; None there waits as long as the call
    takes. Raises `PeerError` with the code that the peer sent, `PeerError("deadline")`, and
    `EnvironmentFault(unreachable)` when the peer is not there or goes away.
    """

    def __init__(self, address: Address, deadline: float | None, *, unreachable: str = "agent-unreachable") -> None:
        self._address = address
        self._deadline = deadline
        self._unreachable = unreachable
        self._lock = threading.Lock()
        self._idle: list[_Exchange] = []
        self._closed = False

    def call(
        self,
        service: str,
        method: str,
        request: bytes,
        timeout: float | None = None,
        *,
        metadata: Sequence[tuple[str, str]] = (),
    ) -> bytes:
        """One unary call; the response's payload. `timeout` also tells the server how long we will wait."""
        limit = self._deadline if timeout is None else timeout
        ends = None if limit is None else time.monotonic() + limit
        exchange = self._take(ends)
        try:
            answer = exchange.call(service, method, request, metadata, ends)
        except _Gone as gone:
            # Not tried again: the server may have carried it out.
            exchange.close()
            raise EnvironmentFault(self._unreachable, f"{_name(self._address)}: {gone}") from gone
        except BaseException:
            exchange.close()
            raise
        self._keep(exchange)
        if isinstance(answer, PeerError):
            raise answer
        return answer

    def close(self) -> None:
        with self._lock:
            self._closed, idle, self._idle = True, self._idle, []
        for exchange in idle:
            exchange.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _take(self, ends: float | None) -> _Exchange:
        """A kept connection that the server has not closed meanwhile, or a new one."""
        with self._lock:
            if self._closed:
                raise UsageError("wrong-state", "this ttrpc client is closed")
            while self._idle:
                exchange = self._idle.pop()
                if exchange.is_silent():
                    return exchange
                exchange.close()
        try:
            return _Exchange(self._address, ends)
        except _Gone as gone:
            raise EnvironmentFault(self._unreachable, f"{_name(self._address)}: {gone}") from gone

    def _keep(self, exchange: _Exchange) -> None:
        with self._lock:
            if not self._closed and len(self._idle) < 4:
                self._idle.append(exchange)
                return
        exchange.close()


class _Gone(Exception):
    """The connection cannot be made or broke; the caller names the error."""


class _Exchange:
    """One connection of a client, one call at a time."""

    def __init__(self, address: Address, ends: float | None) -> None:
        self._connection = Connection(Role.CLIENT)
        family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
        self._socket = socket.socket(family, socket.SOCK_STREAM)
        try:
            self._socket.settimeout(_left(ends))
            self._socket.connect(address)
            if family == socket.AF_INET:
                self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except TimeoutError as error:
            self._socket.close()
            raise _too_late(f"connecting to {_name(address)}") from error
        except OSError as error:
            self._socket.close()
            raise _Gone(error.strerror or str(error)) from error
        except BaseException:
            self._socket.close()
            raise

    def call(
        self, service: str, method: str, request: bytes, metadata: Sequence[tuple[str, str]], ends: float | None
    ) -> bytes | PeerError:
        """The payload, or the error that the peer answered: the connection is sound in both cases."""
        left = _left(ends)
        nanos = 0 if left is None else max(1, int(left * 1e9))
        stream_id, encoded = self._connection.send_request(service, method, request, timeout_nano=nanos, metadata=metadata)
        try:
            self._socket.settimeout(left)
            self._socket.sendall(encoded)
            while True:
                self._socket.settimeout(_left(ends))
                data = self._socket.recv(_CHUNK)
                if not data:
                    raise _Gone("the peer closed the connection")
                for event in self._connection.receive(data):
                    if isinstance(event, ResponseReceived) and event.stream_id == stream_id:
                        return event.payload if event.error is None else event.error
                    if isinstance(event, StreamFailed) and event.stream_id == stream_id:
                        return event.error
        except TimeoutError as error:
            raise _too_late(f"{service}/{method}") from error
        except OSError as error:
            raise _Gone(error.strerror or str(error)) from error

    def is_silent(self) -> bool:
        """Whether nothing came on the idle connection: neither its end nor bytes that nobody asked for."""
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        return not poll.poll(0)

    def close(self) -> None:
        self._socket.close()


def _left(ends: float | None) -> float | None:
    """Seconds until `ends`. Raises `PeerError("deadline")` when there are none."""
    if ends is None:
        return None
    left = ends - time.monotonic()
    if left <= 0:
        raise _too_late("the call")
    return min(left, _LONGEST_WAIT)


def _too_late(what: str) -> PeerError:
    return PeerError("deadline", f"{what} did not end in time")


def _name(address: Address) -> str:
    return address if isinstance(address, str) else f"{address[0]}:{address[1]}"


def _log_to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


class Server:
    """Serves `services` on `address`: a unix socket's path (made with mode 0600) or (host, port).

    `deadline` bounds the arrival of a frame that has begun and the sending of an answer; `idle` how long a silent
    connection may stay (None: for ever, as containerd keeps its own). Above `max_connections` a new connection is
    closed at once; above `max_calls` calls in flight a call is answered RESOURCE_EXHAUSTED.
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
        log: Callable[[str], None] = _log_to_stderr,
    ) -> None:
        self.deadline, self.idle, self.log = deadline, idle, log
        self._services = services
        self._requested = address
        self._workers = _Workers(max_calls)
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

    def start(self) -> None:
        """Listens, and returns. Raises `EnvironmentFault("environment")` when the address cannot be had."""
        if self._listener is not None:
            raise UsageError("wrong-state", "this ttrpc server was started before")
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
            raise EnvironmentFault("environment", f"cannot listen on {_name(self._requested)}: {error.strerror}") from error
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
            answer = status.from_error(error)
        except Exception as error:  # noqa: BLE001 - a handler's bug must not take the server, nor its text the host
            self.log(f"ttrpc: {call.service}/{call.method}: {_where(error)}")
            answer = status.from_error(UsageError("internal", f"{call.method} failed unexpectedly"))
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
                        encoded = self._connection.send_status(stream_id, status.from_error(error))
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
    left = None if ends is None else min(max(0.0, ends - time.monotonic()), _LONGEST_WAIT) * 1000
    if not poll.poll(left):
        raise TimeoutError


class _Workers:
    """Threads that run handlers: made when needed, at most `limit`, ending when idle."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._finished = threading.Condition(self._lock)
        self._queue: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._threads = 0
        self._promised = 0  # work given and not finished: above `_threads`, another thread is needed

    def submit(self, work: Callable[[], None]) -> bool:
        """False when all are busy and no more may be made."""
        with self._lock:
            if self._promised >= self._limit:
                return False
            self._promised += 1
            needed = self._promised > self._threads
            if needed:
                self._threads += 1
        self._queue.put(work)
        if needed:
            try:
                threading.Thread(target=self._work, name="ttrpc-call", daemon=True).start()
            except RuntimeError:  # the cgroup's limit of threads: those we have take it, unless there are none
                with self._lock:
                    self._threads -= 1
                    alone = self._threads == 0
                if alone:
                    with contextlib.suppress(Empty):
                        self._queue.get_nowait()
                        with self._lock:
                            self._promised -= 1
                    return False
        return True

    def wait_idle(self, timeout: float) -> bool:
        with self._lock:
            return self._finished.wait_for(lambda: self._promised == 0, timeout)

    def close(self) -> None:
        with self._lock:
            threads = self._threads
        for _ in range(threads):
            self._queue.put(None)

    def _work(self) -> None:
        while True:
            try:
                work = self._queue.get(timeout=_WORKER_IDLE)
            except Empty:
                with self._lock:
                    # Work given between the timeout and this lock is promised to one thread: stay for it.
                    if self._promised >= self._threads:
                        continue
                    self._threads -= 1
                return
            if work is None:
                with self._lock:
                    self._threads -= 1
                return
            try:
                work()
            finally:
                with self._lock:
                    self._promised -= 1
                    self._finished.notify_all()


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
