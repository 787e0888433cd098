"""Both roles through a pretended wire, and a server in front of a peer that breaks the rules."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enclave_cc import errors
from enclave_cc.errors import EnvironmentFault, PeerError, UsageError
from enclave_cc.wire.pb import codec
from enclave_cc.wire.pb import ttrpc as pb
from enclave_cc.wire.ttrpc import frames, status
from enclave_cc.wire.ttrpc.connection import (
    Connection,
    DataReceived,
    Refusal,
    RequestReceived,
    ResponseReceived,
    Role,
    StreamFailed,
)
from enclave_cc.wire.ttrpc.frames import Frame
from enclave_cc.wire.ttrpc.streams import Move


def pair() -> tuple[Connection, Connection]:
    return Connection(Role.CLIENT), Connection(Role.SERVER)


def request(stream_id: int, flags: int = 0, **fields: object) -> bytes:
    return frames.encode(Frame(stream_id, frames.REQUEST, flags, codec.encode(pb.Request(**fields))))  # type: ignore[arg-type]


def refusal(server: Connection, data: bytes) -> tuple[Refusal, pb.Status]:
    (event,) = server.receive(data)
    assert isinstance(event, Refusal)
    (frame,) = frames.FrameReader().feed(event.answer)
    assert isinstance(frame, Frame)
    assert frame.type == frames.RESPONSE
    assert frame.stream_id == event.stream_id
    found = codec.decode(pb.Response, frame.data).status
    assert found is not None
    return event, found


def test_a_call_and_its_answer() -> None:
    client, server = pair()
    stream_id, data = client.send_request("s.S", "M", b"in", timeout_nano=5, metadata=[("Key", "value")])
    assert stream_id == 1
    (event,) = server.receive(data)
    assert isinstance(event, RequestReceived)
    assert event.request == pb.Request("s.S", "M", b"in", 5, (pb.KeyValue("key", "value"),))
    assert event.unary
    assert server.is_open(1)
    (answer,) = client.receive(server.send_response(1, b"out"))
    assert answer == ResponseReceived(1, b"out")
    assert client.open_streams == server.open_streams == 0
    assert client.send_request("s.S", "M", b"")[0] == 3


def test_byte_by_byte() -> None:
    client, server = pair()
    _, data = client.send_request("s", "m", b"x" * 100)
    events = [event for at in range(len(data)) for event in server.receive(data[at : at + 1])]
    assert len(events) == 1
    assert not server.in_frame


def test_an_error_travels_whole() -> None:
    client, server = pair()
    stream_id, data = client.send_request("s", "m", b"")
    server.receive(data)
    original = EnvironmentFault("disk-full", "no space for layer 3", "Buy a disk.")
    failure = status.from_error(original)
    assert failure.code == errors.Status.RESOURCE_EXHAUSTED
    assert failure.message == "disk-full: no space for layer 3. Buy a disk."
    (event,) = client.receive(server.send_status(stream_id, failure))
    assert isinstance(event, ResponseReceived)
    assert isinstance(event.error, PeerError)
    assert (event.error.code, event.error.what, event.error.fix) == ("disk-full", "no space for layer 3", "Buy a disk.")


@pytest.mark.parametrize(
    ("code", "expected"),
    [(errors.Status.NOT_FOUND, "not-found"), (errors.Status.UNIMPLEMENTED, "rpc-failed"), (99, "rpc-failed"), (4, "deadline")],
)
def test_a_foreign_status_gets_the_nearest_code(code: int, expected: str) -> None:
    error = status.to_error(pb.Status(code=code, message="container\nis gone " + "x" * 999))
    assert error.code == expected
    assert "\n" not in error.what
    assert len(error.what) < 300


@pytest.mark.parametrize(
    "detail",
    [b"\xff", codec.encode(pb.ErrorDetail("no-such-code", "w", "f")), b""],
    ids=["broken", "unknown code", "empty"],
)
def test_a_detail_that_is_not_ours_takes_nothing_away(detail: bytes) -> None:
    error = status.to_error(pb.Status(code=5, message="gone", details=(pb.Any("other", b""), pb.Any(pb.ERROR_DETAIL_URL, detail))))
    assert error.code == "not-found"


def test_data_in_both_directions() -> None:
    client, server = pair()
    stream_id, data = client.send_request("s", "m", b"", move=Move.REQUEST_OPEN)
    (opened,) = server.receive(data)
    assert isinstance(opened, RequestReceived)
    assert (opened.unary, opened.open) == (False, True)
    assert server.receive(client.send_data(stream_id, b"1")) == [DataReceived(stream_id, b"1")]
    assert client.receive(server.send_data(stream_id, b"")) == [DataReceived(stream_id, b"")]
    assert server.receive(client.send_data(stream_id, None, last=True)) == [DataReceived(stream_id, None, last=True)]
    with pytest.raises(UsageError):
        client.send_data(stream_id, b"more")
    assert client.receive(server.send_data(stream_id, b"end", last=True)) == [DataReceived(stream_id, b"end", last=True)]
    assert client.open_streams == server.open_streams == 0


def test_a_server_stream() -> None:
    client, server = pair()
    stream_id, data = client.send_request("s", "m", b"", move=Move.REQUEST_CLOSED)
    server.receive(data)
    client.receive(server.send_data(stream_id, b"1"))
    assert client.receive(server.send_response(stream_id, b"")) == [ResponseReceived(stream_id, b"")]


# ---------------------------------------------------------------- a peer that breaks the rules


def test_even_and_reused_and_falling_ids_are_refused() -> None:
    server = Connection(Role.SERVER)
    assert refusal(server, request(2))[1].code == errors.Status.INVALID_ARGUMENT
    assert refusal(server, request(0))[1].code == errors.Status.INVALID_ARGUMENT
    server.receive(request(5))
    assert refusal(server, request(5))[1].code == errors.Status.INVALID_ARGUMENT
    assert refusal(server, request(3))[1].code == errors.Status.INVALID_ARGUMENT
    assert isinstance(server.receive(request(7))[0], RequestReceived)


def test_an_oversize_request_is_answered_and_the_connection_lives() -> None:
    server = Connection(Role.SERVER)
    size = frames.MAX_DATA_SIZE + 1
    event, answer = refusal(server, size.to_bytes(4, "big") + b"\0\0\0\1" + b"\1\0" + bytes(size))
    assert answer.code == errors.Status.RESOURCE_EXHAUSTED
    assert str(size) in answer.message
    assert event.error.code == "too-large"
    assert isinstance(server.receive(request(3))[0], RequestReceived)


def test_an_oversize_answer_fails_its_call_only() -> None:
    client = Connection(Role.CLIENT)
    first, _ = client.send_request("s", "m", b"")
    second, _ = client.send_request("s", "m", b"")
    size = frames.MAX_DATA_SIZE + 1
    (event,) = client.receive(size.to_bytes(4, "big") + first.to_bytes(4, "big") + b"\2\0" + bytes(size))
    assert isinstance(event, StreamFailed)
    assert event.error.code == "too-large"
    assert client.is_open(second)


def test_requests_that_are_no_protobuf_or_have_both_flags() -> None:
    server = Connection(Role.SERVER)
    assert refusal(server, frames.encode(Frame(1, frames.REQUEST, 0, b"\xff")))[1].code == errors.Status.INVALID_ARGUMENT
    assert refusal(server, request(3, flags=3))[1].code == errors.Status.INVALID_ARGUMENT


def test_data_where_none_belongs() -> None:
    server = Connection(Role.SERVER)
    assert refusal(server, frames.encode(Frame(1, frames.DATA, 0, b"x")))[1].code == errors.Status.INVALID_ARGUMENT
    server.receive(request(1))
    assert refusal(server, frames.encode(Frame(1, frames.DATA, 0, b"x")))[1].code == errors.Status.INVALID_ARGUMENT
    assert not server.is_open(1)
    server.receive(request(3, flags=frames.REMOTE_OPEN))
    contradiction = frames.encode(Frame(3, frames.DATA, frames.NO_DATA | frames.REMOTE_CLOSED, b"x"))
    assert refusal(server, contradiction)[1].code == errors.Status.INVALID_ARGUMENT


def test_open_streams_are_bounded() -> None:
    server = Connection(Role.SERVER, max_streams=2)
    server.receive(request(1) + request(3))
    assert refusal(server, request(5))[1].code == errors.Status.RESOURCE_EXHAUSTED
    server.send_response(1, b"")
    assert isinstance(server.receive(request(7))[0], RequestReceived)


def test_unknown_message_types_are_ignored() -> None:
    client, server = pair()
    assert server.receive(frames.encode(Frame(1, 9, 0, b"?"))) == []
    stream_id, _ = client.send_request("s", "m", b"")
    assert client.receive(frames.encode(Frame(stream_id, 9, 0, b"?"))) == []
    assert client.is_open(stream_id)


def test_an_answer_to_a_call_given_up_is_ignored_and_an_invented_one_is_not() -> None:
    client, server = pair()
    stream_id, data = client.send_request("s", "m", b"")
    server.receive(data)
    client.forget(stream_id)
    answer = server.send_response(stream_id, b"late")
    assert client.receive(answer) == []
    for invented in (3, 2):
        with pytest.raises(PeerError, match="never opened"):
            client.receive(frames.encode(Frame(invented, frames.RESPONSE)))


def test_a_broken_response_fails_its_call() -> None:
    client = Connection(Role.CLIENT)
    stream_id, _ = client.send_request("s", "m", b"")
    (event,) = client.receive(frames.encode(Frame(stream_id, frames.RESPONSE, 0, b"\xff")))
    assert isinstance(event, StreamFailed)
    stream_id, _ = client.send_request("s", "m", b"")
    (event,) = client.receive(frames.encode(Frame(stream_id, frames.DATA, 0, b"")))
    assert isinstance(event, StreamFailed)


def test_misuse_is_our_bug() -> None:
    client, server = pair()
    for action in (
        lambda: server.send_request("s", "m", b""),
        lambda: server.send_response(1, b""),
        lambda: client.send_data(1, b""),
        lambda: client.send_request("s", "m", bytes(frames.MAX_DATA_SIZE)),
    ):
        with pytest.raises(UsageError):
            action()
    assert client.open_streams == 0
    client._last_id = (1 << 32) - 1
    with pytest.raises(UsageError):
        client.send_request("s", "m", b"")


def test_an_answer_that_is_too_large_leaves_room_for_a_status() -> None:
    client, server = pair()
    stream_id, data = client.send_request("s", "m", b"")
    server.receive(data)
    with pytest.raises(UsageError) as caught:
        server.send_response(stream_id, bytes(frames.MAX_DATA_SIZE))
    (event,) = client.receive(server.send_status(stream_id, status.from_error(caught.value)))
    assert isinstance(event, ResponseReceived)
    assert event.error is not None
    assert event.error.code == "too-large"


frame_list = st.lists(
    st.builds(
        Frame,
        stream_id=st.sampled_from([0, 1, 2, 3, 5, 7, 0xFFFFFFFF]),
        type=st.sampled_from([1, 1, 2, 3, 3, 9]),
        flags=st.sampled_from([0, 0, 1, 2, 3, 4, 5, 255]),
        data=st.sampled_from([b"", codec.encode(pb.Request("s", "m")), b"\xff"]),
    ),
    max_size=12,
)


@settings(max_examples=150, deadline=None)
@given(frame_list)
def test_any_frames_leave_a_server_sound(run: list[Frame]) -> None:
    server = Connection(Role.SERVER, max_streams=3)
    for frame in run:
        for event in server.receive(frames.encode(frame)):
            assert isinstance(event, RequestReceived | DataReceived | Refusal)
    assert server.open_streams <= 3


@settings(max_examples=150, deadline=None)
@given(frame_list)
def test_any_frames_leave_a_client_sound_or_end_it(run: list[Frame]) -> None:
    client = Connection(Role.CLIENT)
    client.send_request("s", "m", b"")
    client.send_request("s", "m", b"", move=Move.REQUEST_OPEN)
    try:
        for frame in run:
            client.receive(frames.encode(frame))
    except PeerError as error:
        assert error.code == "malformed"
    assert client.open_streams <= 2
