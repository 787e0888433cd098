"""Frames, requests, answers and the status file of the control socket."""

from __future__ import annotations

import json

import pytest

from enclave_cc.errors import PeerError
from enclave_cc.wire.control import frame, message
from enclave_cc.wire.control.status import State, Status, StatusError

ERROR = StatusError("exec-failed", "sh: not found", "Check it.")
RUNNING = Status("c1", State.RUNNING, stages={"spawn": 3})
REQUESTS: list[message.Request] = [
    message.StateRequest(),
    message.TerminalRequest(24, 80),
    message.ExecRequest("e-1", ("sh", "-c", "é"), ("A=b=c",), "/tmp", "bob:users", True, 1, 65535),
    message.ExecRequest("e", ("id",)),
    message.SignalRequest(9),
    message.SignalRequest(64, "e"),
    message.StopRequest(),
    message.ResizeRequest(0, 1, "e"),
]
REPLIES: list[message.Reply] = [
    message.Done(),
    message.StateReply(RUNNING),
    message.StateReply(Status("c1", State.ERROR, 127, ERROR)),
    message.Started(1),
    message.Exited(255),
    message.Refused(ERROR, 126),
]


def _unframe(encoded: bytes) -> frame.Json:
    (body,) = frame.FrameReader().feed(encoded)
    return body


@pytest.mark.parametrize("request_", REQUESTS)
def test_requests_survive_the_wire(request_: message.Request) -> None:
    assert message.parse_request(_unframe(message.encode_request(request_))) == request_


@pytest.mark.parametrize("reply", REPLIES)
def test_replies_survive_the_wire(reply: message.Reply) -> None:
    assert message.parse_reply(_unframe(message.encode_reply(reply))) == reply


def test_the_form_on_the_wire() -> None:
    encoded = message.encode_request(message.SignalRequest(15))
    assert encoded == b"\0\0\0\x35" + b'{"op":"signal","signal":15,"target":null,"version":1}'


def test_frames_in_any_pieces() -> None:
    stream = b"".join(map(message.encode_request, REQUESTS))
    reader = frame.FrameReader()
    bodies = [body for byte in stream for body in reader.feed(bytes([byte]))]
    assert [message.parse_request(body) for body in bodies] == REQUESTS
    assert reader.pending == 0
    assert len(frame.FrameReader().feed(stream)) == len(REQUESTS)


@pytest.mark.parametrize(
    "data",
    [
        b"\0\0\0\0",
        b"\0\0\0\2[]",
        b"\0\0\0\1{",
        b"\0\0\0\4null",
        b'\0\0\0\x0d{"a":1,"a":2}',
        b'\0\0\0\x09{"a":1.0}',
        b'\0\0\0\x09{"a":NaN}',
        b'\0\0\0\x09{"a":1e1}',
        b"\0\0\0\2\xff\xff",
        b"\0\0\xea\x60" + b"[" * 60000,
    ],
)
def test_broken_frames(data: bytes) -> None:
    with pytest.raises(PeerError) as caught:
        assert frame.FrameReader().feed(data) != []
    assert caught.value.code == "malformed"


def test_a_frame_is_bounded() -> None:
    with pytest.raises(PeerError, match="too-large"):
        frame.FrameReader().feed((frame.BODY_LIMIT + 1).to_bytes(4, "big"))
    with pytest.raises(PeerError, match="too-large"):
        message.encode_request(message.ExecRequest("e", ("x" * frame.BODY_LIMIT,)))


EXEC = {"version": 1, "op": "exec", "id": "e", "args": ["id"]}


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"version": None},
        {"op": "spawn"},
        {"op": ["exec"]},
        {"id": ""},
        {"id": "a/b"},
        {"id": "x" * 65},
        {"id": "e\n"},
        {"args": []},
        {"args": [""]},
        {"args": "id"},
        {"args": [1]},
        {"args": ["a\0b"]},
        {"args": ["\ud800"]},
        {"args": ["x"] * 4097},
        {"env": ["A"]},
        {"env": ["=x"]},
        {"env": {"A": "b"}},
        {"cwd": "tmp"},
        {"cwd": 1},
        {"user": ["bob"]},
        {"terminal": 1},
        {"rows": -1},
        {"rows": 65536},
        {"columns": True},
        {"columns": "80"},
        {"unknown": 1},
    ],
)
def test_requests_that_are_none(change: dict[str, object]) -> None:
    assert message.parse_request(dict(EXEC))
    with pytest.raises(PeerError) as caught:
        message.parse_request({**EXEC, **change})
    assert caught.value.code == "malformed"


@pytest.mark.parametrize(
    "body",
    [
        {"op": "signal", "signal": 0},
        {"op": "signal", "signal": 65},
        {"op": "signal"},
        {"op": "signal", "signal": 9, "target": "a b"},
        {"op": "state", "id": "e"},
        {"op": "stop", "signal": 9},
        {"op": "resize", "rows": 1, "columns": 1, "target": 5},
    ],
)
def test_other_requests_that_are_none(body: dict[str, object]) -> None:
    with pytest.raises(PeerError):
        message.parse_request({"version": 1, **body})


@pytest.mark.parametrize(
    "body",
    [
        {"reply": "started", "pid": 0},
        {"reply": "exited", "exit_code": 256},
        {"reply": "exited"},
        {"reply": "error", "code": "no-such", "what": "", "fix": "", "exit_code": 1},
        {"reply": "error", "code": "usage", "what": 1, "fix": "", "exit_code": 1},
        {"reply": "state", "status": None},
        {"reply": "maybe"},
        {"reply": "done", "more": 1},
    ],
)
def test_replies_that_are_none(body: dict[str, object]) -> None:
    with pytest.raises(PeerError):
        message.parse_reply({"version": 1, **body})


def test_status_survives_the_file() -> None:
    for status in (RUNNING, Status("c", State.EXITED, 0), Status("c", State.ERROR, 50, ERROR), Status("c", State.STARTING)):
        assert Status.parse(status.encode()) == status


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"state": "paused"},
        {"state": None},
        {"state": "exited"},
        {"exit_code": 1},
        {"exit_code": "1"},
        {"exit_code": True},
        {"error": {"code": "usage", "what": "", "fix": ""}},
        {"error": {"code": "usage"}},
        {"error": "usage"},
        {"stages": {"a": -1}},
        {"stages": {"a": True}},
        {"stages": {str(n): 1 for n in range(33)}},
        {"stages": []},
        {"container_id": 1},
        {"more": 1},
    ],
)
def test_statuses_that_are_none(change: dict[str, object]) -> None:
    with pytest.raises(PeerError):
        Status.parse(json.dumps({**RUNNING.to_json(), **change}).encode())


def test_a_final_status_has_its_members() -> None:
    for state, code, error in (
        (State.EXITED, None, None),
        (State.ERROR, 1, None),
        (State.EXITED, 1, ERROR),
        (State.EXITED, 256, None),
    ):
        with pytest.raises(PeerError):
            Status("c", state, code, error)
