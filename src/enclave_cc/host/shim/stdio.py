"""A task's standard streams as containerd names them: FIFOs, or the URI of a file or of a logging program.

The workload gets the FIFO itself: no byte goes through the shim, which can be killed or busy meanwhile. Opened for
reading and writing, a FIFO neither blocks at opening nor ends when containerd is away. Only a terminal's bytes are moved
here, between its master and the FIFOs.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from enclave_cc.errors import EnclaveCcError, EnvironmentFault, UsageError, foreign
from enclave_cc.host.sandbox import runc
from enclave_cc.host.sandbox.runc import Stdio
from enclave_cc.record import record

if TYPE_CHECKING:
    from enclave_cc.host.sandbox.streams import InputPump

_NONBLOCK = 2  # SPLICE_F_NONBLOCK
_READY, _LOGGER_STREAMS = 5, (3, 4)  # descriptors of a logging program, by containerd's convention


@record
class Names:
    """As in the request; empty where there is none. With a terminal, stderr is unused."""

    stdin: str = ""
    stdout: str = ""
    stderr: str = ""
    terminal: bool = False


class Streams:
    """The open streams of one process. `stdio` is for its start; afterwards `release`."""

    def __init__(self, names: Names, *, container: str, namespace: str, deadline: float, meeting: float = 1.0) -> None:
        """`deadline`: for what still runs at the end; `meeting`: for containerd to open its end of a FIFO, seconds.

        Raises `UsageError`, `EnvironmentFault`; then nothing stays open."""
        self.names = names
        self._deadline = deadline
        self._meeting = meeting
        self._guard = threading.Lock()
        self._owned: list[int] = []
        self._writer: int | None = None  # keeps the input open until containerd closes it
        self._master: int | None = None
        self._pumps: list[threading.Thread] = []
        self._input: InputPump | None = None
        self._logger: int | None = None
        self._source = self._sink = -1
        try:
            self.stdio = self._open(container, namespace)
        except OSError as error:
            self.close()
            raise EnvironmentFault("environment", f"the stream {foreign(error.filename)}: {error.strerror}") from error
        except EnclaveCcError:
            self.close()
            raise

    def release(self) -> None:
        """The process has them: only its own copies keep the other side reading."""
        with self._guard:
            kept = {self._source, self._sink} if self.names.terminal else set()
            for descriptor in self._owned:
                if descriptor not in kept:
                    os.close(descriptor)
            self._owned = [descriptor for descriptor in self._owned if descriptor in kept]

    def attach(self, master: int) -> None:
        """Moves the terminal's bytes from now on; owns `master`."""
        from enclave_cc.host.sandbox.streams import InputPump, Pump  # terminals only

        with self._guard:
            self._master = master
            sink = self._sink if self._sink >= 0 else None
            output = Pump(os.dup(master), sink)
            output.start()
            self._pumps.append(output)
            if self._source >= 0:
                self._input = InputPump(self._source, master)
                self._input.start()

    def resize(self, rows: int, columns: int) -> None:
        """Raises `UsageError("wrong-state")` without a terminal."""
        import fcntl
        import struct
        import termios

        with self._guard:
            if self._master is None:
                raise UsageError("wrong-state", "there is no terminal")
            fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("4H", rows, columns, 0, 0))

    def close_input(self) -> None:
        """containerd will write no more; what it wrote is still read."""
        with self._guard:
            writer, self._writer = self._writer, None
        if writer is not None:
            os.close(writer)

    def close(self) -> None:
        """After the end of the process: what a terminal showed last is moved, then all is closed."""
        self.close_input()
        with self._guard:
            feed, self._input = self._input, None
            master, self._master = self._master, None
        if feed is not None:
            feed.stop()
        if master is not None:
            os.close(master)
        for pump in self._pumps:
            pump.join(self._deadline)
        self._pumps = []
        with self._guard:
            for descriptor in self._owned:
                os.close(descriptor)
            self._owned = []
            logger, self._logger = self._logger, None
        if logger is not None:
            threading.Thread(target=_end_logger, args=(logger, self._deadline), name="logger", daemon=True).start()

    # --- opening

    def _open(self, container: str, namespace: str) -> Stdio:
        names = self.names
        null = self._own(os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC))
        source = null
        if names.stdin:
            source = self._open_input(names.stdin)
        scheme, separator, path = names.stdout.partition("://")
        if separator and scheme in ("binary", "binary-v2"):
            out, err = self._start_logger(scheme, path, container, namespace)
        elif separator and scheme == "file":
            os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)  # noqa: PTH103, PTH120
            out = err = self._own(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644))
        elif separator and scheme != "fifo":
            raise UsageError("usage", f"{foreign(names.stdout)!r} is no place for output: the scheme is not known")
        else:
            out = self._open_output(path if separator else names.stdout, null)
            err = out if names.stderr == names.stdout else self._open_output(names.stderr.removeprefix("fifo://"), null)
        if names.terminal:
            # Boot init's own streams are nobody's; the workload's come from the terminal.
            self._source, self._sink = (source if names.stdin else -1), (out if names.stdout else -1)
            return Stdio(null, null, null)
        return Stdio(source, out, err)

    def _open_input(self, name: str) -> int:
        """Ends for the workload when containerd closes its side, but not before that has been opened."""
        source = self._own(os.open(name, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))
        if _is_fifo(name) and not _wait_writer(source, time.monotonic() + self._meeting):
            self._writer = os.open(name, os.O_WRONLY | os.O_CLOEXEC)  # open until `close_input`
        os.set_blocking(source, True)
        return source

    def _open_output(self, name: str, null: int) -> int:
        if not name:
            return null
        if not _is_fifo(name):  # a file: behind what is there
            return self._own(os.open(name, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600))
        # A process that is quick would be gone, with what it wrote, before containerd's side was open, and that would then
        # wait for a writer for ever.
        meeting = _meet_reader(name, time.monotonic() + self._meeting)
        try:
            return self._own(os.open(name, os.O_RDWR | os.O_CLOEXEC))
        finally:
            if meeting is not None:
                os.close(meeting)

    def _start_logger(self, scheme: str, uri: str, container: str, namespace: str) -> tuple[int, int]:
        from urllib.parse import parse_qsl, unquote

        path, _, query = uri.partition("?")
        command = [unquote(path)]
        for name, value in parse_qsl(query, keep_blank_values=True):
            command += [name, value] if value else [name]
        pipes = [os.pipe2(os.O_CLOEXEC) for _ in range(3)]
        (out_reader, out), (err_reader, err), (ready, ready_writer) = pipes
        null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        spares: list[int] = []
        try:
            import fcntl

            # Above their targets, so that placing one overwrites no other.
            spares = [fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, 10) for number in (out_reader, err_reader, ready_writer)]
            places = [*_LOGGER_STREAMS, _READY]
            actions = [(os.POSIX_SPAWN_DUP2, null, number) for number in range(3)]
            actions += [(os.POSIX_SPAWN_DUP2, spare, place) for spare, place in zip(spares, places, strict=True)]
            environment = {**os.environ, "CONTAINER_ID": container, "CONTAINER_NAMESPACE": namespace}
            self._logger = os.posix_spawn(command[0], command, environment, file_actions=actions)
        except OSError as error:
            for number in (ready, out, err):
                os.close(number)
            raise EnvironmentFault("missing-tool", f"the logging program {foreign(command[0])}: {error.strerror}") from error
        finally:
            for number in (*spares, out_reader, err_reader, ready_writer, null):
                os.close(number)
        self._own(out)
        self._own(err)
        try:
            import select

            poll = select.poll()
            poll.register(ready, select.POLLIN)
            if not poll.poll(self._deadline * 1000) or (not os.read(ready, 1) and scheme == "binary-v2"):
                raise EnvironmentFault("deadline", f"the logging program {foreign(command[0])} was not ready in time")
        finally:
            os.close(ready)
        return out, err

    def _own(self, descriptor: int) -> int:
        self._owned.append(descriptor)
        return descriptor


def _meet_reader(name: str, until: float) -> int | None:
    """A writing descriptor of a FIFO that somebody has open for reading, or has begun to open: that one has met a writer
    then. None when nobody comes.
    """
    import errno

    while time.monotonic() < until:
        try:
            return os.open(name, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
        time.sleep(0.001)
    return None


def _wait_writer(descriptor: int, until: float) -> bool:
    """Whether somebody has opened a FIFO for writing since we opened it for reading; consumes nothing."""
    import ctypes
    import errno
    import select

    libc = ctypes.CDLL(None, use_errno=True)
    scratch_reader, scratch = os.pipe2(os.O_CLOEXEC)
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    try:
        while True:
            # Bytes are there, or a writer came and went; or tee(2) would wait for bytes, which it does for a writer only.
            if poll.poll(0) or (libc.tee(descriptor, scratch, 1, _NONBLOCK) < 0 and ctypes.get_errno() == errno.EAGAIN):
                return True
            if time.monotonic() > until:
                return False
            time.sleep(0.001)
    finally:
        os.close(scratch_reader)
        os.close(scratch)


def _is_fifo(name: str) -> bool:
    import stat

    try:
        return stat.S_ISFIFO(os.stat(name).st_mode)  # noqa: PTH116
    except FileNotFoundError:
        return False


def _end_logger(pid: int, deadline: float) -> None:
    """The end of its pipes ends it; else a signal does."""
    for number in (None, signal.SIGTERM, signal.SIGKILL):
        if number is not None:
            with suppress(ProcessLookupError):
                os.kill(pid, number)
        with suppress(ChildProcessError, ProcessLookupError):
            if runc.wait_child(pid, time.monotonic() + deadline) is None:
                continue
        return
