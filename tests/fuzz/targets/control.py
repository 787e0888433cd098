"""Any bytes on the control socket, or in the status file, are a value that encodes back to itself, or raise `PeerError`."""

from __future__ import annotations

from contextlib import suppress

from enclave_cc.errors import PeerError
from enclave_cc.wire.control import frame, message
from enclave_cc.wire.control.status import State, Status, StatusError

_ERROR = StatusError("exec-failed", "what", "fix")
SEEDS: list[bytes] = [
    message.encode_request(message.StateRequest()),
    message.encode_request(message.TerminalRequest(24, 80)),
    message.encode_request(message.ExecRequest("e", ("sh", "-c", "id"), ("A=b",), "/", "bob", True, 1, 2)),
    message.encode_request(message.SignalRequest(9, "e")),
    message.encode_request(message.StopRequest()),
    message.encode_request(message.ResizeRequest(1, 2)),
    message.encode_reply(message.StateReply(Status("c", State.ERROR, 127, _ERROR, {"spawn": 1}))),
    message.encode_reply(message.Refused(_ERROR, 126)),
    message.encode_reply(message.Started(5)) + message.encode_reply(message.Exited(0)),
    Status("c", State.RUNNING).encode(),
]


def target(data: bytes) -> None:
    with suppress(PeerError):
        status = Status.parse(data)
        assert Status.parse(status.encode()) == status
    with suppress(PeerError):
        for body in frame.FrameReader().feed(data):
            with suppress(PeerError):
                request = message.parse_request(body)
                assert message.parse_request(frame.parse_body(message.encode_request(request)[frame.HEADER_SIZE :])) == request
            with suppress(PeerError):
                reply = message.parse_reply(body)
                assert message.parse_reply(frame.parse_body(message.encode_reply(reply)[frame.HEADER_SIZE :])) == reply
