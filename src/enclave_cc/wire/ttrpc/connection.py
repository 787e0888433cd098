"""One ttrpc connection, sans-io: bytes in, events out; calls in, bytes out. Both roles.

    connection = Connection(Role.CLIENT)
    stream_id, to_send = connection.send_request("pkg.Service", "Method", payload)
    for event in connection.receive(received): ...

`receive` never fails for what concerns one stream only: a server gets a `Refusal` with the answer to send, a client
a `StreamFailed`. It raises `PeerError("malformed")` when the byte stream itself is lost; close the connection then.
Messages of unknown types are ignored, as PROTOCOL.md's readers do for what may come.

Not thread-safe: the caller holds one lock around each call, and sends what it returned in that order.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum, auto

from enclave_cc import errors
from enclave_cc.errors import PeerError, UsageError
from enclave_cc.record import record
from enclave_cc.wire.pb import codec
from enclave_cc.wire.pb import ttrpc as pb
from enclave_cc.wire.ttrpc import frames, status, streams
from enclave_cc.wire.ttrpc.streams import Move, State

_MAX_STREAM_ID = (1 << 32) - 1
# Streams that one peer may keep open at once. containerd keeps a handful; a hostile peer gets a status.
MAX_STREAMS = 256


class Role(Enum):
    CLIENT = auto()  # opens streams, with odd ids
    SERVER = auto()


@record
class RequestReceived:
    """A new stream. `unary`: the only thing owed is a response. `open`: the client sends data still."""

    stream_id: int
    request: pb.Request
    unary: bool = True
    open: bool = False


@record
class DataReceived:
    """Data on a stream; None for the `no data` flag. `last`: the peer sends no more."""

    stream_id: int
    data: bytes | None
    last: bool = False


@record
class ResponseReceived:
    """The stream's end. `error` is the status as an error of ours, None for OK."""

    stream_id: int
    payload: bytes
    error: PeerError | None = None


@record
class Refusal:
    """Server: a message that was refused. The transport sends `answer`, and gives up the stream if it holds it."""

    stream_id: int
    error: PeerError
    answer: bytes


@record
class StreamFailed:
    """Client: the server broke the protocol on this stream, which is closed now."""

    stream_id: int
    error: PeerError


Event = RequestReceived | DataReceived | ResponseReceived | Refusal | StreamFailed

_REQUEST_MOVES = {0: Move.REQUEST, frames.REMOTE_CLOSED: Move.REQUEST_CLOSED, frames.REMOTE_OPEN: Move.REQUEST_OPEN}
_REQUEST_FLAGS = {move: flags for flags, move in _REQUEST_MOVES.items()}


class Connection:
    """The state of one connection. `max_streams` bounds what the peer may keep open (server)."""

    __slots__ = ("_last_id", "_max_streams", "_reader", "_streams", "role")

    def __init__(self, role: Role, *, max_streams: int = MAX_STREAMS) -> None:
        self.role = role
        self._reader = frames.FrameReader()
        self._streams: dict[int, State] = {}
        self._last_id = -1 if role is Role.CLIENT else 0
        self._max_streams = max_streams

    @property
    def open_streams(self) -> int:
        return len(self._streams)

    @property
    def in_frame(self) -> bool:
        """True while the peer owes the rest of a frame: the transport's read deadline starts here."""
        return self._reader.in_frame

    # ------------------------------------------------------------ receive

    def receive(self, data: bytes | bytearray | memoryview) -> list[Event]:
        """What the peer's bytes mean. Raises `PeerError("malformed")` when the connection cannot go on."""
        events: list[Event] = []
        for frame in self._reader.feed(data):
            event = self._receive_at_server(frame) if self.role is Role.SERVER else self._receive_at_client(frame)
            if event is not None:
                events.append(event)
        return events

    def _receive_at_server(self, frame: frames.Frame | frames.Oversize) -> Event | None:
        stream_id = frame.stream_id
        if isinstance(frame, frames.Oversize):
            if frame.type == frames.REQUEST and stream_id > self._last_id:
                self._last_id = stream_id
            return self._refuse(stream_id, errors.Status.RESOURCE_EXHAUSTED, _oversize(frame))
        if frame.type not in (frames.REQUEST, frames.DATA):
            return None
        if stream_id % 2 != 1:
            return self._refuse(stream_id, errors.Status.INVALID_ARGUMENT, "stream ids of clients are odd")
        if frame.type == frames.DATA:
            state = self._streams.get(stream_id)
            if state is None:
                return self._refuse(stream_id, errors.Status.INVALID_ARGUMENT, "the stream is not active")
            try:
                return self._take_data(frame, state)
            except PeerError as error:
                return self._refuse(stream_id, errors.Status.INVALID_ARGUMENT, error.what)
        if stream_id <= self._last_id:
            return self._refuse(stream_id, errors.Status.INVALID_ARGUMENT, "a stream id is used once, and they increase")
        self._last_id = stream_id
        move = _REQUEST_MOVES.get(frame.flags & (frames.REMOTE_CLOSED | frames.REMOTE_OPEN))
        if move is None:
            return self._refuse(stream_id, errors.Status.INVALID_ARGUMENT, "a request is remote closed or remote open, not both")
        if len(self._streams) >= self._max_streams:
            return self._refuse(stream_id, errors.Status.RESOURCE_EXHAUSTED, f"more than {self._max_streams} open streams")
        try:
            request = codec.decode(pb.Request, frame.data)
        except PeerError as error:
            return self._refuse(stream_id, errors.Status.INVALID_ARGUMENT, error.what)
        self._streams[stream_id] = streams.receive(State.IDLE, move)
        return RequestReceived(stream_id, request, unary=move is Move.REQUEST, open=move is Move.REQUEST_OPEN)

    def _receive_at_client(self, frame: frames.Frame | frames.Oversize) -> Event | None:
        state = self._streams.get(frame.stream_id)
        if state is None:
            if frame.stream_id > max(self._last_id, 0) or frame.stream_id % 2 != 1:
                raise PeerError("malformed", "the server answers on a ttrpc stream that was never opened")
            return None  # the answer to a call that was given up
        try:
            if isinstance(frame, frames.Oversize):
                raise PeerError("too-large", _oversize(frame))
            if frame.type == frames.DATA:
                return self._take_data(frame, state)
            if frame.type != frames.RESPONSE:
                return None
            self._move(frame.stream_id, streams.receive(state, Move.RESPONSE))
            response = codec.decode(pb.Response, frame.data)
        except PeerError as error:
            self._streams.pop(frame.stream_id, None)
            return StreamFailed(frame.stream_id, error)
        failed = response.status is not None and response.status.code != errors.Status.OK
        error_of_peer = status.to_error(response.status) if failed and response.status is not None else None
        return ResponseReceived(frame.stream_id, response.payload, error_of_peer)

    def _take_data(self, frame: frames.Frame, state: State) -> Event:
        last = bool(frame.flags & frames.REMOTE_CLOSED)
        absent = bool(frame.flags & frames.NO_DATA)
        after = streams.receive(state, Move.DATA_LAST if last else Move.DATA)
        if absent and frame.data:
            raise PeerError("malformed", "a ttrpc message flagged as without data has data")
        self._move(frame.stream_id, after)
        return DataReceived(frame.stream_id, None if absent else frame.data, last)

    def _refuse(self, stream_id: int, code: errors.Status, what: str) -> Refusal:
        self._streams.pop(stream_id, None)
        ours = PeerError("too-large" if code is errors.Status.RESOURCE_EXHAUSTED else "malformed", what)
        payload = codec.encode(pb.Response(status=status.make(code, f"ttrpc: {what}")))
        return Refusal(stream_id, ours, frames.encode(frames.Frame(stream_id, frames.RESPONSE, 0, payload)))

    # ------------------------------------------------------------ send

    def send_request(
        self,
        service: str,
        method: str,
        payload: bytes,
        *,
        timeout_nano: int = 0,
        metadata: Sequence[tuple[str, str]] = (),
        move: Move = Move.REQUEST,
    ) -> tuple[int, bytes]:
        """A new stream's id and its request. Raises `UsageError` when too large, or when the ids are used up."""
        stream_id = self._last_id + 2
        if self.role is not Role.CLIENT or stream_id > _MAX_STREAM_ID:
            raise UsageError("wrong-state", "this ttrpc connection cannot open another stream")
        state = streams.send(State.IDLE, move)
        pairs = tuple(pb.KeyValue(key.lower(), value) for key, value in metadata)
        request = codec.encode(pb.Request(service, method, payload, timeout_nano, pairs))
        encoded = frames.encode(frames.Frame(stream_id, frames.REQUEST, _REQUEST_FLAGS[move], request))
        self._last_id, self._streams[stream_id] = stream_id, state
        return stream_id, encoded

    def send_data(self, stream_id: int, data: bytes | None, *, last: bool = False) -> bytes:
        """Data, or with None only the mark that no more follows. Raises `UsageError`."""
        state = self._streams.get(stream_id, State.CLOSED)
        after = streams.send(state, Move.DATA_LAST if last else Move.DATA)
        flags = (frames.REMOTE_CLOSED if last else 0) | (frames.NO_DATA if data is None else 0)
        encoded = frames.encode(frames.Frame(stream_id, frames.DATA, flags, data or b""))
        self._move(stream_id, after)
        return encoded

    def send_response(self, stream_id: int, payload: bytes) -> bytes:
        """The answer of a call that went well. Raises `UsageError("too-large")`, and the stream still owes its answer."""
        return self._respond(stream_id, pb.Response(status=pb.Status(), payload=payload))

    def send_status(self, stream_id: int, failure: pb.Status) -> bytes:
        """The answer of a call that failed."""
        return self._respond(stream_id, pb.Response(status=failure))

    def _respond(self, stream_id: int, response: pb.Response) -> bytes:
        after = streams.send(self._streams.get(stream_id, State.CLOSED), Move.RESPONSE)
        encoded = frames.encode(frames.Frame(stream_id, frames.RESPONSE, 0, codec.encode(response)))
        self._move(stream_id, after)
        return encoded

    def forget(self, stream_id: int) -> None:
        """Gives up a stream; what still comes for it is ignored (client) or refused (server)."""
        self._streams.pop(stream_id, None)

    def is_open(self, stream_id: int) -> bool:
        return stream_id in self._streams

    def _move(self, stream_id: int, after: State) -> None:
        if after is State.CLOSED:
            self._streams.pop(stream_id, None)
        else:
            self._streams[stream_id] = after


def _oversize(frame: frames.Oversize) -> str:
    return f"message length {frame.size} exceeds the maximum of {frames.MAX_DATA_SIZE}"
