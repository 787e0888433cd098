"""Frames of the control socket: a 4-byte big-endian length and one JSON object (docs/formats/control.md, Frames)."""

from __future__ import annotations

import json

from enclave_cc.errors import PeerError

HEADER_SIZE = 4
BODY_LIMIT = 1 << 20

Json = dict[str, object]


def encode_frame(body: Json) -> bytes:
    """One frame. Raises `PeerError("too-large")` when the body is over `BODY_LIMIT`."""
    encoded = json.dumps(body, separators=(",", ":"), sort_keys=True, allow_nan=False).encode()
    if len(encoded) > BODY_LIMIT:
        raise PeerError("too-large", f"the control message has {len(encoded)} bytes, {BODY_LIMIT} are allowed")
    return len(encoded).to_bytes(HEADER_SIZE, "big") + encoded


def parse_header(header: bytes) -> int:
    """The body's size in bytes. Raises `PeerError` for 0 or more than `BODY_LIMIT`."""
    size = int.from_bytes(header, "big")
    if len(header) != HEADER_SIZE or size == 0:
        raise PeerError("malformed", "the control frame has no length")
    if size > BODY_LIMIT:
        raise PeerError("too-large", f"the control frame announces {size} bytes, {BODY_LIMIT} are allowed")
    return size


def parse_body(body: bytes) -> Json:
    """The JSON object in `body`. Raises `PeerError("malformed")` for anything else, duplicate members included."""
    try:
        value = json.loads(
            body.decode("utf-8"),
            object_pairs_hook=_unique_members,
            parse_float=_refuse_number,
            parse_constant=_refuse_number,
        )
    except (ValueError, RecursionError) as error:  # the decoders' errors are ValueErrors; deep nesting ends in the second
        raise PeerError("malformed", "the control message is not JSON of the form in docs/formats/control.md") from error
    if not isinstance(value, dict):
        raise PeerError("malformed", "the control message is not a JSON object")
    return value


class FrameReader:
    """Cuts a byte stream into frames. Feed it what arrives; holds at most one frame and one read beyond it."""

    __slots__ = ("_buffer",)

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[Json]:
        """The bodies that `data` completes. Raises `PeerError`; the stream is unusable then."""
        self._buffer += data
        bodies: list[Json] = []
        while len(self._buffer) >= HEADER_SIZE:
            size = parse_header(bytes(self._buffer[:HEADER_SIZE]))
            if len(self._buffer) < HEADER_SIZE + size:
                break
            body = bytes(self._buffer[HEADER_SIZE : HEADER_SIZE + size])
            del self._buffer[: HEADER_SIZE + size]
            bodies.append(parse_body(body))
        return bodies

    @property
    def pending(self) -> int:
        """Bytes held of a frame that is not complete."""
        return len(self._buffer)


def _unique_members(pairs: list[tuple[str, object]]) -> Json:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("duplicate member")
    return value


def _refuse_number(text: str) -> object:
    raise ValueError(f"not an integer: {text[:16]}")
