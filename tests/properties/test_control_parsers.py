"""Whatever bytes reach the control socket's parsers, they give a value or raise `PeerError`; what they give encodes back."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from enclave_cc.errors import PeerError
from enclave_cc.wire.control import frame, message
from enclave_cc.wire.control.status import Status

SCALARS = (
    st.none() | st.booleans() | st.integers(-2, 70000) | st.text(max_size=8) | st.sampled_from(["e", "/x", "a=b", "\0", "\ud800"])
)
VALUES = SCALARS | st.lists(SCALARS, max_size=3) | st.dictionaries(st.text(max_size=4), SCALARS, max_size=2)
NAMES = ["version", "op", "id", "args", "env", "cwd", "user", "terminal", "rows", "columns", "signal", "target", "reply", "pid"]
BODIES = st.dictionaries(st.sampled_from([*NAMES, "exit_code", "code", "what", "fix", "status"]), VALUES).flatmap(
    lambda body: st.fixed_dictionaries(
        {
            "version": st.sampled_from([1, 1, 1, 2]),
            "op": st.sampled_from(["state", "terminal", "exec", "signal", "stop", "resize", 3]),
            "reply": st.sampled_from(["done", "state", "started", "exited", "error", 3]),
        }
    ).map(lambda fixed: {**body, **fixed})
)


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=64) | st.binary(max_size=60).map(lambda b: len(b).to_bytes(4, "big") + b))
def test_frames(data: bytes) -> None:
    try:
        bodies = frame.FrameReader().feed(data)
    except PeerError:
        return
    for body in bodies:
        assert frame.FrameReader().feed(frame.encode_frame(body)) == [body]


@settings(max_examples=200, deadline=None)
@given(BODIES)
def test_requests(body: frame.Json) -> None:
    body.pop("reply")
    try:
        request = message.parse_request(body)
    except PeerError:
        return
    assert message.parse_request(frame.FrameReader().feed(message.encode_request(request))[0]) == request


@settings(max_examples=200, deadline=None)
@given(BODIES)
def test_replies(body: frame.Json) -> None:
    body.pop("op")
    try:
        reply = message.parse_reply(body)
    except PeerError:
        return
    assert message.parse_reply(frame.FrameReader().feed(message.encode_reply(reply))[0]) == reply


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=200))
def test_status_files(data: bytes) -> None:
    try:
        status = Status.parse(data)
    except PeerError:
        return
    assert Status.parse(status.encode()) == status
