"""A started boot init, as the pod's supervisor sees it."""

import contextlib
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from enclave_cc.wire.control import frame, message
from enclave_cc.wire.control.status import Status

HERE = Path(__file__).parent
APPLETS = "sh ls id cat sleep mount ps echo stat env hostname mknod touch kill true tty stty mkdir dd umount readlink grep wc"
DEADLINE = 20.0


@dataclass
class Container:
    """One started boot init. `process` is its parent in the host's namespaces."""

    directory: Path
    process: subprocess.Popen[bytes]

    def wait(self) -> tuple[int, str, str]:
        """Exit code, standard output and standard error."""
        out, err = self.process.communicate(timeout=DEADLINE)
        return self.process.returncode, out.decode(), err.decode()

    @property
    def status(self) -> Status:
        return Status.parse((self.directory / "status.json").read_bytes())

    @property
    def log(self) -> str:
        return (self.directory / "boot.log").read_text()

    def wait_state(self, *states: str) -> Status:
        end = time.monotonic() + DEADLINE
        while time.monotonic() < end:
            with contextlib.suppress(FileNotFoundError):
                if self.status.state in states:
                    return self.status
            assert self.process.poll() is None, self.process.communicate()
            time.sleep(0.005)
        raise AssertionError(f"never {states}: {self.log}")

    def connect(self) -> socket.socket:
        end = time.monotonic() + DEADLINE
        while True:
            connection = socket.socket(socket.AF_UNIX)
            connection.settimeout(DEADLINE)
            try:
                connection.connect(str(self.directory / "control.sock"))
                return connection
            except OSError:
                connection.close()
                if time.monotonic() > end:
                    raise
                time.sleep(0.005)

    def ask(self, request: message.Request, fds: tuple[int, ...] = ()) -> message.Reply:
        """The first answer; descriptors that come with it are dropped."""
        with self.connect() as connection:
            return send(connection, request, fds)[0]

    def execute(self, *args: str, stdin: bytes = b"", **members: object) -> tuple[int, str]:
        """Exit code and output of an exec."""
        identifier = f"e{time.monotonic_ns()}"
        request = message.ExecRequest(identifier, args, **members)  # type: ignore[arg-type]
        with self.connect() as connection, tempfile.TemporaryFile() as into, tempfile.TemporaryFile() as out:
            into.write(stdin)
            into.seek(0)
            reply, _ = send(connection, request, (into.fileno(), out.fileno(), out.fileno()))
            if isinstance(reply, message.Refused):
                return reply.exit_code, f"{reply.error.code}: {reply.error.what}"
            assert isinstance(reply, message.Started)
            ended, _ = receive(connection)
            assert isinstance(ended, message.Exited)
            out.seek(0)
            return ended.exit_code, out.read().decode()


def send(connection: socket.socket, request: message.Request, fds: tuple[int, ...] = ()) -> tuple[message.Reply, list[int]]:
    encoded = message.encode_request(request)
    if fds:
        socket.send_fds(connection, [encoded], list(fds))
    else:
        connection.sendall(encoded)
    return receive(connection)


def receive(connection: socket.socket) -> tuple[message.Reply, list[int]]:
    """One answer, read to its last byte and no further."""
    data, fds, _, _ = socket.recv_fds(connection, frame.HEADER_SIZE, 4)
    while len(data) < frame.HEADER_SIZE:
        data += _read(connection, frame.HEADER_SIZE - len(data))
    body = b""
    size = frame.parse_header(data)
    while len(body) < size:
        body += _read(connection, size - len(body))
    return message.parse_reply(frame.parse_body(body)), fds


def _read(connection: socket.socket, size: int) -> bytes:
    data = connection.recv(size)
    if not data:
        raise EOFError("boot init closed the connection")
    return data


Run = Callable[..., Container]
