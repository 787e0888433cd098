from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from enclave_cc.errors import EnclaveCcError
from enclave_cc.host.sandbox import control_client
from enclave_cc.host.sandbox.control_client import ControlConnection, Refusal
from enclave_cc.wire.control import frame, message
from enclave_cc.wire.control.status import State, Status, StatusError


@pytest.fixture
def served(short_path: Path) -> Callable[[Callable[[socket.socket], None]], Path]:
    """Starts a boot init that handles one connection with the given function."""

    def start(handle: Callable[[socket.socket], None]) -> Path:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(short_path / "control.sock"))
        listener.listen(1)

        def serve() -> None:
            with listener, listener.accept()[0] as peer:
                handle(peer)

        threading.Thread(target=serve, daemon=True).start()
        return short_path / "control.sock"

    return start


def read_request(peer: socket.socket) -> message.Request:
    reader = frame.FrameReader()
    while True:
        bodies = reader.feed(peer.recv(4096))
        if bodies:
            return message.parse_request(bodies[0])


def test_descriptors_come_with_the_answer(served: Callable[..., Path]) -> None:
    reader, writer = os.pipe()

    def handle(peer: socket.socket) -> None:
        assert read_request(peer) == message.TerminalRequest(24, 80)
        socket.send_fds(peer, [message.encode_reply(message.Done())], [writer])

    reply, descriptors = control_client.ask(served(handle), message.TerminalRequest(24, 80), deadline=5)
    assert reply == message.Done()
    os.write(descriptors[0], b"x")
    assert os.read(reader, 1) == b"x"
    for descriptor in (reader, writer, *descriptors):
        os.close(descriptor)


def test_a_refusal_keeps_code_and_exit_code(served: Callable[..., Path]) -> None:
    refused = message.Refused(StatusError("exec-failed", "no such file", "Look."), 127)
    path = served(lambda peer: (read_request(peer), peer.sendall(message.encode_reply(refused))))
    with pytest.raises(Refusal) as caught:
        control_client.ask(path, message.ExecRequest("x", ("nope",)), deadline=5)
    assert (caught.value.code, caught.value.exit_code) == ("exec-failed", 127)


def test_a_refusal_that_is_there_before_the_request(served: Callable[..., Path]) -> None:
    refused = message.Refused(StatusError("launch-denied", "no exec", "Ask."), 54)
    for _ in range(20):
        path = served(lambda peer: peer.sendall(message.encode_reply(refused)))
        with pytest.raises(EnclaveCcError) as caught:
            control_client.ask(path, message.StateRequest(), deadline=5)
        assert caught.value.code == "launch-denied"
        path.unlink()


@pytest.mark.parametrize(
    ("handle", "code"),
    [
        (lambda peer: read_request(peer), "app-died"),
        (lambda peer: (read_request(peer), peer.sendall(b"\xff" * 8)), "too-large"),
        (lambda peer: (read_request(peer), peer.sendall(b"\0\0\0\2[]")), "malformed"),
        (lambda peer: (read_request(peer), threading.Event().wait(1)), "deadline"),
    ],
)
def test_what_a_broken_boot_init_answers(served: Callable[..., Path], handle: Callable[..., None], code: str) -> None:
    with pytest.raises(EnclaveCcError) as caught:
        control_client.ask(served(handle), message.StateRequest(), deadline=0.3)
    assert caught.value.code == code


def test_answers_may_arrive_in_pieces_and_together(served: Callable[..., Path]) -> None:
    def handle(peer: socket.socket) -> None:
        read_request(peer)
        data = message.encode_reply(message.Started(7)) + message.encode_reply(message.Exited(3))
        peer.sendall(data[:5])
        peer.sendall(data[5:])

    with ControlConnection(served(handle), deadline=5) as connection:
        connection.send(message.ExecRequest("x", ("true",)))
        assert connection.receive(deadline=5)[0] == message.Started(7)
        assert connection.receive(deadline=5)[0] == message.Exited(3)


def test_nobody_there(short_path: Path) -> None:
    with pytest.raises(EnclaveCcError) as caught:
        control_client.ask(short_path / "none", message.StateRequest(), deadline=1)
    assert caught.value.code == "wrong-state"


def test_the_status_file(tmp_path: Path) -> None:
    path = tmp_path / "status.json"
    assert control_client.read_status(path) is None
    status = Status("c", State.ERROR, 127, StatusError("exec-failed", "nope", "Look."), {"settings": 1})
    path.write_bytes(status.encode())
    assert control_client.read_status(path) == status
    path.write_bytes(b"{}")
    with pytest.raises(EnclaveCcError):
        control_client.read_status(path)
