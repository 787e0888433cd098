"""The simulated CPU behind a unix socket, hosted by the pod's supervisor.

On hardware an instruction knows which enclave executes it. Here the kernel says which process connected
(SO_PEERCRED), and the supervisor's `identify` says which enclave that process is in. A pid may be reused between
the two, so the peer is held by a pidfd and must still be alive when identified.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from enclave_cc.errors import EnclaveCcError, PeerError
from enclave_cc.simulator.cpu import SimulatedEnclave, SoftwareCpu
from enclave_cc.simulator.listener import listen
from enclave_cc.wire.sgx import cpu_socket
from enclave_cc.wire.sgx.cpu_socket import EreportRequest, Op
from enclave_cc.wire.sgx.report import KeyRequest, Report

if TYPE_CHECKING:
    from enclave_cc.simulator.quoting import QuotingEnclave

_UCRED = struct.Struct("3i")
_SO_PEERPIDFD = 77  # since Linux 6.5; Python 3.11 has no name for it
_MAX_CONNECTIONS = 64  # a container's processes can hold this many threads of the supervisor, no more


class CpuService:
    """Serves one socket until closed. `identify(host pid)` raises `PeerError` for a pid of no known enclave."""

    def __init__(
        self,
        cpu: SoftwareCpu,
        socket_path: Path | str,
        identify: Callable[[int], SimulatedEnclave],
        *,
        deadline: float = 10.0,
        log: Callable[[str], None] = lambda line: None,
    ) -> None:
        """`deadline`: seconds in which a peer must have sent its request and taken the answer. `log` gets one line per
        refusal, from any thread."""
        self._log = log
        self._cpu = cpu
        self._path = Path(socket_path)
        self._identify = identify
        self._deadline = deadline
        self._slots = threading.BoundedSemaphore(_MAX_CONNECTIONS)
        self._counting = threading.Lock()
        self._served = 0
        self._quoting_lock = threading.Lock()
        self._quoting: QuotingEnclave | None = None
        self._listener: socket.socket | None = None
        self._thread: threading.Thread | None = None

    def start(self, listener: socket.socket | None = None) -> None:
        """Serves from a thread what `listen` made, or makes it. Raises `OSError`."""
        listener = listener or listen(self._path)
        self._listener = listener
        self._thread = threading.Thread(target=self._accept, args=(listener,), name="simulated-cpu", daemon=True)
        self._thread.start()

    def prepare_quoting(self) -> None:
        """Makes the quoting enclave ahead of the first question, which comes late and is waited for."""
        self._quoting_enclave()

    def close(self) -> None:
        """Stops serving and removes the socket; requests under way end by their deadline. May be called twice."""
        listener, self._listener = self._listener, None
        if listener is not None:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)  # wakes accept
            listener.close()
            self._path.unlink(missing_ok=True)
        if self._thread is not None:
            self._thread.join(self._deadline)
            self._thread = None

    def __enter__(self) -> CpuService:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError as error:
                if self._listener is not listener:
                    return
                self._log(f"the simulated CPU cannot accept: {error}")
                threading.Event().wait(0.1)  # out of descriptors: let some close
                continue
            self.take(connection)

    def take(self, connection: socket.socket) -> None:
        """Serves one accepted connection from a thread of its own; waits while too many are served."""
        self._slots.acquire()
        with self._counting:
            self._served += 1
        threading.Thread(target=self._serve, args=(connection,), name="simulated-cpu-request", daemon=True).start()

    def is_busy(self) -> bool:
        """Whether connections are being served."""
        return self._served > 0

    def _serve(self, connection: socket.socket) -> None:
        try:
            with connection:
                end = time.monotonic() + self._deadline
                connection.settimeout(self._deadline)
                try:
                    enclave = self._identify_peer(connection)
                    op, size = cpu_socket.parse_request_header(_receive(connection, cpu_socket.HEADER_SIZE, end))
                    request = cpu_socket.parse_request_body(op, _receive(connection, size, end))
                    answer = cpu_socket.encode_answer(self._execute(enclave, op, request))
                except EnclaveCcError as error:
                    self._log(f"the simulated CPU refused: {error.code}: {error.what}")
                    connection.sendall(cpu_socket.encode_refusal(error.code, error.what))
                    _drain(connection, end)
                else:
                    connection.sendall(answer)
        except OSError as error:
            self._log(f"a peer of the simulated CPU went away: {error}")
        finally:
            with self._counting:
                self._served -= 1
            self._slots.release()

    def _identify_peer(self, connection: socket.socket) -> SimulatedEnclave:
        """1. hold the peer, 2. identify its pid, 3. see that the pid was its own all the time."""
        pid = _UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))[0]
        # 1
        try:
            pidfd = _open_peer(connection, pid)
        except OSError as error:
            raise PeerError("report-refused", "the asking process is gone") from error
        try:
            # 2
            enclave = self._identify(pid)
            # 3
            poll = select.poll()
            poll.register(pidfd, select.POLLIN)
            if poll.poll(0):
                raise PeerError("report-refused", "the asking process is gone")
        finally:
            os.close(pidfd)
        return enclave

    def _execute(self, enclave: SimulatedEnclave, op: Op, request: cpu_socket.Request) -> bytes:
        match op, request:
            case Op.EREPORT, EreportRequest(target, report_data):
                return enclave.ereport(target, report_data).encode()
            case Op.EGETKEY, KeyRequest():
                return enclave.egetkey(request).reveal()
            case Op.QUOTE, Report():
                return self._quoting_enclave().quote(request)
            case Op.QE_TARGET, _:
                return self._quoting_enclave().target_info().encode()
            case _:
                return enclave.identity.encode()

    def _quoting_enclave(self) -> QuotingEnclave:
        with self._quoting_lock:  # made at first use: most app enclaves never ask for a quote
            if self._quoting is None:
                from enclave_cc.simulator.quoting import QuotingEnclave

                self._quoting = QuotingEnclave(self._cpu.platform)
            return self._quoting


def _open_peer(connection: socket.socket, pid: int) -> int:
    try:
        return connection.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD)
    except OSError:
        return os.pidfd_open(pid)  # older kernel: a pid reused before this call goes unseen


def _drain(connection: socket.socket, end: float) -> None:
    """Takes what the peer still sends: closing over unread bytes would reset the connection and lose the refusal."""
    connection.shutdown(socket.SHUT_WR)
    left = cpu_socket.BODY_LIMIT
    while left > 0 and (part := _receive_some(connection, left, end)):
        left -= len(part)


def _receive(connection: socket.socket, size: int, end: float) -> bytes:
    data = bytearray()
    while len(data) < size:
        part = _receive_some(connection, size - len(data), end)
        if not part:
            raise ConnectionError("closed within a request")
        data += part
    return bytes(data)


def _receive_some(connection: socket.socket, size: int, end: float) -> bytes:
    connection.settimeout(max(end - time.monotonic(), 0.001))  # one deadline for all of it: no peer holds us by trickling
    return connection.recv(size)
