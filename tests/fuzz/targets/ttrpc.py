"""A ttrpc connection takes any bytes, in any pieces, in both roles: events, or `PeerError` and the end."""

from __future__ import annotations

from enclave_cc.errors import PeerError
from enclave_cc.wire.pb import codec
from enclave_cc.wire.pb import ttrpc as pb
from enclave_cc.wire.ttrpc import frames
from enclave_cc.wire.ttrpc.connection import Connection, Role
from enclave_cc.wire.ttrpc.frames import Frame
from enclave_cc.wire.ttrpc.streams import Move

_REQUEST = codec.encode(pb.Request("s.S", "M", b"payload", 5, (pb.KeyValue("k", "v"),)))
_RESPONSE = codec.encode(pb.Response(pb.Status(5, "gone", (pb.Any(pb.ERROR_DETAIL_URL, b"\x0a\x01x"),)), b"payload"))
SEEDS = [
    frames.encode(Frame(1, frames.REQUEST, 0, _REQUEST)) + frames.encode(Frame(3, frames.REQUEST, 2, _REQUEST)),
    frames.encode(Frame(3, frames.DATA, 0, b"data")) + frames.encode(Frame(3, frames.DATA, 5)),
    frames.encode(Frame(1, frames.RESPONSE, 0, _RESPONSE)) + frames.encode(Frame(3, frames.RESPONSE, 0, _RESPONSE)),
    b"\0\x40\0\1\0\0\0\1\1\0" + bytes(64),
]


def target(data: bytes) -> None:
    for role in Role:
        connection = Connection(role, max_streams=4)
        if role is Role.CLIENT:
            connection.send_request("s", "m", b"")
            connection.send_request("s", "m", b"", move=Move.REQUEST_OPEN)
        try:
            for at in range(0, len(data), 7):
                connection.receive(data[at : at + 7])
        except PeerError:
            continue
