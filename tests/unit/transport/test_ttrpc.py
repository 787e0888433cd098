"""Client and server over real sockets: many at once, slow peers, hostile peers, deadlines, restarts."""

from __future__ import annotations

import os
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from enclave_cc.errors import EnvironmentFault, PeerError, UsageError
from enclave_cc.transport.ttrpc import Address, Client
from enclave_cc.transport.ttrpc_server import Call, Server, Services, WithCall
from enclave_cc.wire.pb import codec
from enclave_cc.wire.pb import ttrpc as pb
from enclave_cc.wire.ttrpc import frames
from enclave_cc.wire.ttrpc.connection import Connection, ResponseReceived, Role
from enclave_cc.wire.ttrpc.frames import Frame

Serve = Callable[..., Server]


@pytest.fixture
def logged() -> list[str]:
    return []


@pytest.fixture
def serve(tmp_path: Path, logged: list[str]) -> Iterator[Serve]:
    started: list[Server] = []

    def start(services: Services, address: Address | None = None, **options: object) -> Server:
        server = Server(address or str(tmp_path / "s"), services, log=logged.append, **options)  # type: ignore[arg-type]
        server.start()
        started.append(server)
        return server

    yield start
    for server in started:
        server.close()


def echo(data: bytes) -> bytes:
    return data


ECHO: Services = {"s.S": {"Echo": echo}}


@pytest.mark.parametrize("address", [None, ("127.0.0.1", 0)], ids=["unix", "tcp"])
def test_calls_over_unix_and_tcp(serve: Serve, address: Address | None) -> None:
    server = serve(ECHO, address)
    with Client(server.address, 5) as client:
        assert client.call("s.S", "Echo", b"hello") == b"hello"
        assert client.call("s.S", "Echo", b"") == b""
        large = os.urandom(3 << 20)
        assert client.call("s.S", "Echo", large) == large


def test_the_socket_is_the_owners_only(serve: Serve, tmp_path: Path) -> None:
    serve(ECHO)
    assert stat.S_IMODE((tmp_path / "s").stat().st_mode) == 0o600


def test_many_threads_share_a_client(serve: Serve) -> None:
    server = serve({"s.S": {"Slow": lambda data: (time.sleep(0.2), data)[1]}})
    answers: list[bytes] = []
    with Client(server.address, 10) as client:
        threads = [
            threading.Thread(target=lambda i=i: answers.append(client.call("s.S", "Slow", str(i).encode()))) for i in range(30)
        ]
        started = time.monotonic()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert time.monotonic() - started < 3  # 30 calls of 0.2 s were not one after the other
    assert sorted(answers) == sorted(str(i).encode() for i in range(30))


def test_one_multiplexed_connection_gets_answers_out_of_order(serve: Serve) -> None:
    """As containerd's client does it: several calls on one connection at once."""
    gate = threading.Event()
    server = serve({"s.S": {"Wait": lambda data: (gate.wait(5), data)[1], "Echo": echo}})
    connection = Connection(Role.CLIENT)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(5)
        sock.connect(str(server.address))
        slow, data = connection.send_request("s.S", "Wait", b"1")
        quick, more = connection.send_request("s.S", "Echo", b"2")
        sock.sendall(data + more)
        assert connection.receive(sock.recv(4096)) == [ResponseReceived(quick, b"2")]
        gate.set()
        assert connection.receive(sock.recv(4096)) == [ResponseReceived(slow, b"1")]


def test_an_error_keeps_its_code(serve: Serve) -> None:
    def fail(data: bytes) -> bytes:
        raise EnvironmentFault("disk-full", "no space", "Buy a disk.")

    server = serve({"s.S": {"Fail": fail}})
    with Client(server.address, 5) as client:
        with pytest.raises(PeerError) as caught:
            client.call("s.S", "Fail", b"")
        assert (caught.value.code, caught.value.what, caught.value.fix) == ("disk-full", "no space", "Buy a disk.")
        with pytest.raises(PeerError):
            client.call("s.S", "Fail", b"")  # the connection is still sound


def test_a_bug_in_a_handler_shows_neither_text_nor_data(serve: Serve, logged: list[str]) -> None:
    def fail(data: bytes) -> bytes:
        raise ValueError("the key is hunter2")

    server = serve({"s.S": {"Fail": fail}})
    with Client(server.address, 5) as client, pytest.raises(PeerError) as caught:
        client.call("s.S", "Fail", b"")
    assert caught.value.code == "internal"
    assert "hunter2" not in str(caught.value) + "".join(logged)
    assert any("ValueError at test_ttrpc.py" in line for line in logged)


@pytest.mark.parametrize(("service", "method"), [("no.S", "Echo"), ("s.S", "No")])
def test_unknown_methods(serve: Serve, service: str, method: str) -> None:
    with Client(serve(ECHO).address, 5) as client, pytest.raises(PeerError) as caught:
        client.call(service, method, b"")
    assert caught.value.code == "rpc-failed"
    assert "is not known here" in caught.value.what


def test_an_answer_that_is_too_large(serve: Serve) -> None:
    server = serve({"s.S": {"Large": lambda _: bytes(5 << 20), "Echo": echo}})
    with Client(server.address, 5) as client:
        with pytest.raises(PeerError) as caught:
            client.call("s.S", "Large", b"")
        assert caught.value.code == "too-large"
        with pytest.raises(UsageError):
            client.call("s.S", "Echo", bytes(5 << 20))
        assert client.call("s.S", "Echo", b"x") == b"x"


def test_the_callers_deadline_and_metadata_reach_the_handler(serve: Serve) -> None:
    seen: list[Call] = []
    server = serve({"s.S": {"See": WithCall(lambda call: (seen.append(call), call.payload)[1])}})
    with Client(server.address, None) as client:
        client.call("s.S", "See", b"1", timeout=60, metadata=[("Who", "me")])
        client.call("s.S", "See", b"2")
    assert seen[0].deadline is not None
    assert 55 < seen[0].deadline - time.monotonic() <= 60
    assert seen[0].metadata == (("who", "me"),)
    assert seen[1].deadline is None


def test_a_call_ends_at_its_deadline(serve: Serve) -> None:
    gate = threading.Event()
    server = serve({"s.S": {"Wait": lambda data: (gate.wait(10), data)[1], "Echo": echo}})
    with Client(server.address, 5) as client:
        started = time.monotonic()
        with pytest.raises(PeerError) as caught:
            client.call("s.S", "Wait", b"", timeout=0.2)
        assert caught.value.code == "deadline"
        assert time.monotonic() - started < 2
        assert client.call("s.S", "Echo", b"x") == b"x"
    gate.set()


def test_no_server(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFault) as caught:
        Client(str(tmp_path / "none"), 1).call("s", "m", b"")
    assert caught.value.code == "agent-unreachable"
    with pytest.raises(EnvironmentFault) as caught:
        Client(("127.0.0.1", 1), 1, unreachable="kbs-unreachable").call("s", "m", b"")
    assert caught.value.code == "kbs-unreachable"


def test_a_server_that_goes_away_during_a_call(serve: Serve) -> None:
    server = serve({"s.S": {"Wait": lambda data: (time.sleep(0.5), data)[1]}})
    threading.Timer(0.1, server.close).start()
    with Client(server.address, 5) as client, pytest.raises(EnvironmentFault) as caught:
        client.call("s.S", "Wait", b"")
    assert caught.value.code == "agent-unreachable"


def test_a_kept_connection_survives_a_restart_of_the_server(serve: Serve) -> None:
    first = serve(ECHO)
    with Client(first.address, 5) as client:
        client.call("s.S", "Echo", b"1")
        first.close()
        serve(ECHO)
        assert client.call("s.S", "Echo", b"2") == b"2"


def test_a_stale_socket_is_replaced_and_a_file_is_not(serve: Serve, tmp_path: Path) -> None:
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(str(tmp_path / "s"))
    stale.close()
    serve(ECHO)
    (tmp_path / "f").write_text("mine")
    with pytest.raises(EnvironmentFault):
        serve(ECHO, str(tmp_path / "f"))
    assert (tmp_path / "f").read_text() == "mine"


def test_closing_removes_the_socket_and_stops_the_threads(serve: Serve, tmp_path: Path) -> None:
    before = {thread.name for thread in threading.enumerate()}
    server = serve(ECHO)
    with Client(server.address, 5) as client:
        client.call("s.S", "Echo", b"")
        server.close()
    server.close()
    assert not (tmp_path / "s").exists()
    until = time.monotonic() + 5
    while {t.name for t in threading.enumerate() if t.name.startswith("ttrpc")} - before and time.monotonic() < until:
        time.sleep(0.01)
    assert not {t.name for t in threading.enumerate() if t.name.startswith("ttrpc")} - before


def test_a_closed_client(serve: Serve) -> None:
    client = Client(serve(ECHO).address, 5)
    client.close()
    with pytest.raises(UsageError):
        client.call("s.S", "Echo", b"")


def test_draining_waits_for_calls_in_flight(serve: Serve) -> None:
    gate = threading.Event()
    server = serve({"s.S": {"Wait": lambda data: (gate.wait(5), data)[1]}})
    assert server.drain(1)
    client = Client(server.address, 5)
    thread = threading.Thread(target=client.call, args=("s.S", "Wait", b""))
    thread.start()
    time.sleep(0.1)
    assert not server.drain(0.05)
    gate.set()
    assert server.drain(5)
    thread.join()
    client.close()


# ---------------------------------------------------------------- hostile and slow peers


def connect(server: Server) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(5)
    sock.connect(str(server.address))
    return sock


def call(sock: socket.socket, stream_id: int, method: str = "Echo", payload: bytes = b"") -> None:
    request = codec.encode(pb.Request(service="s.S", method=method, payload=payload))
    sock.sendall(frames.encode(Frame(stream_id, frames.REQUEST, 0, request)))


def test_a_peer_that_stops_in_a_frame_is_dropped_and_delays_nobody(serve: Serve) -> None:
    server = serve(ECHO, deadline=0.3)
    with connect(server) as half, Client(server.address, 5) as client:
        half.sendall(b"\0\0")
        assert client.call("s.S", "Echo", b"x") == b"x"
        assert half.recv(1) == b""


def test_a_peer_that_does_not_read_is_dropped_and_delays_nobody(serve: Serve) -> None:
    server = serve({"s.S": {"Large": lambda _: bytes(3 << 20), "Echo": echo}}, deadline=0.3)
    with connect(server) as deaf, Client(server.address, 5) as client:
        for stream_id in range(1, 9, 2):
            call(deaf, stream_id, "Large")
        assert client.call("s.S", "Echo", b"x") == b"x"
        until = time.monotonic() + 5
        received = 0
        time.sleep(0.6)
        while time.monotonic() < until and (data := deaf.recv(1 << 20)):
            received += len(data)
        assert received < 12 << 20  # cut off before all four answers


def test_a_silent_connection_is_dropped_if_so_configured(serve: Serve) -> None:
    with connect(serve(ECHO, idle=0.2)) as silent:
        assert silent.recv(1) == b""


def test_garbage_ends_the_connection_only(serve: Serve, logged: list[str]) -> None:
    server = serve(ECHO)
    with connect(server) as bad, Client(server.address, 5) as client:
        bad.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert bad.recv(1) == b""
        assert client.call("s.S", "Echo", b"x") == b"x"
    assert any("connection closed" in line for line in logged)


def test_an_oversize_frame_is_answered_with_a_status(serve: Serve) -> None:
    with connect(serve(ECHO)) as sock:
        size = frames.MAX_DATA_SIZE + 1
        sock.sendall(size.to_bytes(4, "big") + b"\0\0\0\1" + b"\1\0" + bytes(size))
        (frame,) = frames.FrameReader().feed(sock.recv(4096))
        assert isinstance(frame, Frame)
        response = codec.decode(pb.Response, frame.data)
        assert response.status is not None
        assert response.status.code == 8
        call(sock, 3, payload=b"x")
        (frame,) = frames.FrameReader().feed(sock.recv(4096))
        assert isinstance(frame, Frame)
        assert codec.decode(pb.Response, frame.data).payload == b"x"


def test_connections_are_bounded(serve: Serve) -> None:
    server = serve(ECHO, max_connections=2)
    with connect(server), connect(server):
        time.sleep(0.1)
        with connect(server) as third:
            assert third.recv(1) == b""


def test_calls_in_flight_are_bounded(serve: Serve) -> None:
    gate = threading.Event()
    server = serve({"s.S": {"Wait": lambda data: (gate.wait(5), data)[1]}}, max_calls=2)
    with connect(server) as sock:
        for stream_id in (1, 3, 5):
            call(sock, stream_id, "Wait")
        (frame,) = frames.FrameReader().feed(sock.recv(4096))
        assert isinstance(frame, Frame)
        response = codec.decode(pb.Response, frame.data)
        assert frame.stream_id == 5
        assert response.status is not None
        assert response.status.code == 8
        gate.set()


def test_a_stream_is_refused_for_a_unary_method(serve: Serve) -> None:
    with connect(serve(ECHO)) as sock:
        request = codec.encode(pb.Request(service="s.S", method="Echo"))
        sock.sendall(frames.encode(Frame(1, frames.REQUEST, frames.REMOTE_OPEN, request)))
        (frame,) = frames.FrameReader().feed(sock.recv(4096))
        assert isinstance(frame, Frame)
        response = codec.decode(pb.Response, frame.data)
        assert response.status is not None
        assert response.status.code == 12


def test_a_server_that_answers_garbage(tmp_path: Path) -> None:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "bad"))
    listener.listen()

    def serve_garbage() -> None:
        accepted, _ = listener.accept()
        with accepted:
            accepted.recv(4096)
            accepted.sendall(b"\xff" * 32)

    thread = threading.Thread(target=serve_garbage)
    thread.start()
    with Client(str(tmp_path / "bad"), 5) as client, pytest.raises(PeerError) as caught:
        client.call("s", "m", b"")
    assert caught.value.code == "malformed"
    thread.join()
    listener.close()
