"""`kbs serve --workers N`: processes that serve from one listening socket, so that a KBS uses every core.

The parent holds the socket and serves nothing itself. A worker that dies is started again; SIGHUP replaces the workers
one after another, each new one taking connections before the old one stops, so that changed settings or a new version
come without a refused connection. A worker ends when its standard input does, which the parent's death sees to.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from types import FrameType
from typing import IO, cast

from enclave_cc.errors import EnvironmentFault
from enclave_cc.record import record

BACKLOG = 512


@record
class Timing:
    """Seconds. `start`: for a worker to take connections; `end`: for one to end; `pause`: before a dead one is replaced."""

    start: float = 60.0
    end: float = 40.0
    pause: float = 1.0


class Workers:
    """`command` starts a worker; the socket's descriptor is appended to it. `inherited`: more descriptors for them all."""

    def __init__(
        self,
        command: Sequence[str],
        listener: socket.socket,
        count: int,
        *,
        inherited: Sequence[int] = (),
        timing: Timing = Timing(),  # noqa: B008
    ) -> None:
        self._command = [*command, str(listener.fileno())]
        self._inherited = (listener.fileno(), *inherited)
        self._listener = listener
        self._count = count
        self._timing = timing
        self._running: list[subprocess.Popen[bytes]] = []
        self._signals: list[int] = []

    def serve(self, ready: Callable[[str], None]) -> None:
        """Until SIGTERM or SIGINT. Raises `EnvironmentFault("environment")` when the first worker does not start."""
        awake, wake = socket.socketpair()
        wake.setblocking(False)
        awake.setblocking(False)
        numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)
        before = {number: signal.signal(number, self._note) for number in numbers}
        old_wakeup = signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
        try:
            url = self._start()
            for _ in range(self._count - 1):
                self._start()
            ready(url)
            self._watch(awake)
        finally:
            self._stop(self._running)
            signal.set_wakeup_fd(old_wakeup)
            for number, handler in before.items():
                signal.signal(number, handler)
            awake.close()
            wake.close()

    def _note(self, number: int, _: FrameType | None) -> None:
        self._signals.append(number)

    def _watch(self, awake: socket.socket) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(awake, selectors.EVENT_READ)
            while True:
                selector.select(self._timing.pause)
                with contextlib.suppress(BlockingIOError):
                    awake.recv(4096)
                noted, self._signals = self._signals, []
                if signal.SIGTERM in noted or signal.SIGINT in noted:
                    return
                self._replace_dead()
                if signal.SIGHUP in noted:
                    self._replace_all()

    def _replace_dead(self) -> None:
        dead = [worker for worker in self._running if worker.poll() is not None]
        for worker in dead:
            self._running.remove(worker)
            _close(worker)
            print(f'{{"event":"worker-ended","code":{worker.returncode}}}', file=sys.stderr, flush=True)
        if len(self._running) < self._count:
            if dead:
                time.sleep(self._timing.pause)  # not as fast as it can fail
            with contextlib.suppress(EnvironmentFault):  # it said why on stderr; the next round tries again
                self._start()

    def _replace_all(self) -> None:
        for worker in list(self._running):
            try:
                self._start()
            except EnvironmentFault:
                print('{"event":"worker-kept","why":"its successor did not start"}', file=sys.stderr, flush=True)
                return
            self._running.remove(worker)
            self._stop([worker])

    def _start(self) -> str:
        """The URL that the new worker says it serves."""
        worker = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=self._inherited,
            start_new_session=True,
        )
        output = cast(IO[bytes], worker.stdout)
        with selectors.DefaultSelector() as selector:
            selector.register(output, selectors.EVENT_READ)
            end = time.monotonic() + self._timing.start
            while time.monotonic() < end and not selector.select(0.2):
                if signal.SIGTERM in self._signals or signal.SIGINT in self._signals:
                    break
            else:
                line = output.readline().decode() if time.monotonic() < end else ""
                if line.startswith("kbs ready "):
                    self._running.append(worker)
                    return line.removeprefix("kbs ready ").strip()
        self._stop([worker])
        raise EnvironmentFault("environment", "a worker of the KBS did not start", "See its own error above.")

    def _stop(self, workers: list[subprocess.Popen[bytes]]) -> None:
        for worker in workers:
            if worker.poll() is None:
                worker.terminate()
        end = time.monotonic() + self._timing.end
        for worker in workers:
            try:
                worker.wait(max(0.0, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                worker.kill()
                worker.wait()
            _close(worker)


def open_listener(host: str, port: int) -> socket.socket:
    """A listening TCP socket that workers inherit. Raises `EnvironmentFault("environment")`."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(BACKLOG)
        except OSError:
            listener.close()
            raise
    except OSError as error:
        raise explain_listen(host, port, error) from error
    listener.setblocking(False)
    return listener


def explain_listen(host: str, port: int, error: OSError) -> EnvironmentFault:
    number = error.errno or 0  # asyncio's own words repeat the address; name resolution's numbers are negative
    return EnvironmentFault(
        "environment",
        f"cannot listen on {host}:{port}: {os.strerror(number) if number > 0 else error.strerror}",
        "Choose another address with --listen.",
    )


def _close(worker: subprocess.Popen[bytes]) -> None:
    for stream in (worker.stdin, worker.stdout):
        if stream is not None:
            stream.close()
