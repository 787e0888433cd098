"""The client side of `kubectl exec`, `attach` and `port-forward`: CRI's streaming server over WebSocket (RFC 6455), sub-protocol
v4.channel.k8s.io: the first byte of each message is the channel. Not a test; a part that tests share.
"""

from __future__ import annotations

import base64
import json
import os
import socket
import struct
import time
from types import TracebackType
from urllib.parse import urlsplit

STDIN, STDOUT, STDERR, ERROR, RESIZE = range(5)
_CLOSE, _PING, _PONG = 8, 9, 10


class Stream:
    """`deadline`: seconds for each wait. Output gathers in `stdout` and `stderr`."""

    def __init__(self, url: str, *, deadline: float = 20.0) -> None:
        self.deadline = deadline
        self.stdout = self.stderr = b""
        self.result: dict[str, object] | None = None
        self._buffer = b""
        parts = urlsplit(url)
        assert parts.hostname is not None and parts.port is not None
        self._socket = socket.create_connection((parts.hostname, parts.port), deadline)
        key = base64.b64encode(os.urandom(16)).decode()
        path = parts.path + (f"?{parts.query}" if parts.query else "")
        lines = [f"GET {path} HTTP/1.1", f"Host: {parts.netloc}", "Upgrade: websocket", "Connection: Upgrade"]
        lines += [f"Sec-WebSocket-Key: {key}", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Protocol: v4.channel.k8s.io"]
        self._socket.sendall("\r\n".join([*lines, "", ""]).encode())
        head = self._read_until(b"\r\n\r\n")
        assert b" 101 " in head.split(b"\r\n")[0], head

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._socket.close()

    def write(self, data: bytes) -> None:
        """To the process's input."""
        self._send(2, bytes([STDIN]) + data)

    def resize(self, columns: int, rows: int) -> None:
        self._send(2, bytes([RESIZE]) + json.dumps({"Width": columns, "Height": rows}).encode())

    def read_until(self, text: bytes) -> bytes:
        """Waits until stdout holds `text`; what it holds. Takes that out of `stdout`."""
        until = time.monotonic() + self.deadline
        while text not in self.stdout:
            assert time.monotonic() < until, self.stdout
            assert self._receive(), (self.stdout, self.result)
        end = self.stdout.index(text) + len(text)
        found, self.stdout = self.stdout[:end], self.stdout[end:]
        return found

    def wait(self) -> int:
        """The exit code, when the process ended."""
        while self._receive():
            pass
        assert self.result is not None, "the stream ended without a result"
        if self.result["status"] == "Success":
            return 0
        causes = self.result["details"]["causes"]  # type: ignore[index]
        return int(next(cause["message"] for cause in causes if cause["reason"] == "ExitCode"))

    def read_failure(self) -> str:
        """Why there was no process; waits for it."""
        while self._receive():
            pass
        assert self.result is not None and self.result["status"] == "Failure", self.result
        return str(self.result["message"])

    def _receive(self) -> bool:
        """Takes one message; False at the end."""
        message = self._receive_message()
        if message is None:
            return False
        if message:
            self._take(message[0], message[1:])
        return True

    def _take(self, channel: int, data: bytes) -> None:
        if channel == STDOUT:
            self.stdout += data
        elif channel == STDERR:
            self.stderr += data
        elif channel == ERROR and data:
            self.result = json.loads(data)

    def _receive_message(self) -> bytes | None:
        """None at the end."""
        try:
            first, second = self._read(2)
            size = second & 0x7F
            if size == 126:
                (size,) = struct.unpack(">H", self._read(2))
            elif size == 127:
                (size,) = struct.unpack(">Q", self._read(8))
            payload = self._read(size)
        except EOFError:
            return None
        opcode = first & 0x0F
        if opcode == _CLOSE:
            return None
        if opcode == _PING:
            self._send(_PONG, payload)
            return b""
        return payload

    def _send(self, opcode: int, payload: bytes) -> None:
        mask = os.urandom(4)
        size = struct.pack(">B", 0x80 | len(payload)) if len(payload) < 126 else struct.pack(">BH", 0x80 | 126, len(payload))
        masked = bytes(byte ^ mask[i % 4] for i, byte in enumerate(payload))
        self._socket.sendall(bytes([0x80 | opcode]) + size + mask + masked)

    def _read(self, size: int) -> bytes:
        while len(self._buffer) < size:
            self._fill()
        found, self._buffer = self._buffer[:size], self._buffer[size:]
        return found

    def _read_until(self, end: bytes) -> bytes:
        while end not in self._buffer:
            self._fill()
        size = self._buffer.index(end) + len(end)
        return self._read(size)

    def _fill(self) -> None:
        try:
            data = self._socket.recv(1 << 16)
        except ConnectionResetError:
            data = b""
        if not data:
            raise EOFError
        self._buffer += data


class PortForward(Stream):
    """One forwarded port: bytes to it and from it. Both channels begin with the port's number (two bytes, low first)."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.received = self.error = b""
        self._heads = {0: 2, 1: 2}

    def write(self, data: bytes) -> None:
        self._send(2, b"\0" + data)

    def read_until_received(self, text: bytes) -> bytes:
        until = time.monotonic() + self.deadline
        while text not in self.received:
            assert time.monotonic() < until, (self.received, self.error)
            assert self._receive(), (self.received, self.error)
        return self.received

    def read_error(self) -> bytes:
        """Why the port could not be reached; waits for it."""
        while self._receive():
            pass
        return self.error

    def _take(self, channel: int, data: bytes) -> None:
        head = min(self._heads.get(channel, 0), len(data))
        self._heads[channel] = self._heads.get(channel, 0) - head
        if channel == 0:
            self.received += data[head:]
        else:
            self.error += data[head:]
