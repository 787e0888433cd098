"""ttrpc frames: a 10-byte header and up to 4 MiB of data.

| offset | size | field |
|---|---|---|
| 0 | 4 | data length, big-endian; at most 4 MiB, so that the first byte is zero |
| 4 | 4 | stream id, big-endian; odd when the client opened the stream |
| 8 | 1 | message type: 1 request, 2 response, 3 data |
| 9 | 1 | flags: 1 remote closed, 2 remote open, 4 no data |

Source: containerd/ttrpc, PROTOCOL.md, "Message Frame".
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from enclave_cc.errors import PeerError, UsageError
from enclave_cc.record import record

HEADER_SIZE = 10
MAX_DATA_SIZE = 4 << 20  # PROTOCOL.md: "any larger size should be rejected"
# PROTOCOL.md: the first byte "should always be zero" and is reserved; a frame that claims more is no ttrpc.
_MAX_LENGTH = (1 << 24) - 1
_HEADER = struct.Struct(">IIBB")

REQUEST, RESPONSE, DATA = 1, 2, 3
REMOTE_CLOSED, REMOTE_OPEN, NO_DATA = 0x1, 0x2, 0x4


@record
class Frame:
    """One message. `type` and `flags` are as on the wire: unknown ones are for the connection to judge."""

    stream_id: int
    type: int
    flags: int = 0
    data: bytes = b""


@record
class Oversize:
    """A frame of `size` bytes of data, above `MAX_DATA_SIZE`; its data was dropped."""

    stream_id: int
    type: int
    size: int


def encode(frame: Frame) -> bytes:
    """Header and data. Raises `UsageError("too-large")` above `MAX_DATA_SIZE`."""
    if len(frame.data) > MAX_DATA_SIZE:
        raise UsageError("too-large", f"a ttrpc message of {len(frame.data)} bytes; the limit is {MAX_DATA_SIZE}")
    return _HEADER.pack(len(frame.data), frame.stream_id, frame.type, frame.flags) + frame.data


class FrameReader:
    """Cuts a byte stream into frames; holds at most one frame's bytes plus what one `feed` brought."""

    __slots__ = ("_buffer", "_skip", "_skipped")

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._skip = 0  # bytes of an oversize frame still to drop
        self._skipped: Oversize | None = None

    @property
    def in_frame(self) -> bool:
        """True while a frame has begun and not ended."""
        return bool(self._buffer) or self._skipped is not None

    def feed(self, data: bytes | bytearray | memoryview) -> Iterator[Frame | Oversize]:
        """The frames that `data` completes. Raises `PeerError("malformed")`; the stream is then lost."""
        self._buffer += data
        while True:
            if self._skipped is not None:
                dropped = min(self._skip, len(self._buffer))
                del self._buffer[:dropped]
                self._skip -= dropped
                if self._skip:
                    return
                oversize, self._skipped = self._skipped, None
                yield oversize
                continue
            if len(self._buffer) < HEADER_SIZE:
                return
            size, stream_id, kind, flags = _HEADER.unpack_from(self._buffer)
            if size > _MAX_LENGTH:
                raise PeerError("malformed", "the first byte of a ttrpc frame is not zero")
            if size > MAX_DATA_SIZE:
                del self._buffer[:HEADER_SIZE]
                self._skip, self._skipped = size, Oversize(stream_id, kind, size)
                continue
            if len(self._buffer) < HEADER_SIZE + size:
                return
            content = bytes(memoryview(self._buffer)[HEADER_SIZE : HEADER_SIZE + size])
            del self._buffer[: HEADER_SIZE + size]
            yield Frame(stream_id, kind, flags, content)
