"""The states of one stream: anything that affects them is in this file, and this file knows no role.

Who opened the stream is the *initiator*; the other is the *acceptor*. Each side keeps its own view, in which it
either sends a message or receives it. A unary stream carries a request and a response. A stream with data ends when
the acceptor closes it, by a response or by its last data; PROTOCOL.md has the initiator close its side first, but a
server may end early (with an error), so the table lets it.

Source: containerd/ttrpc, PROTOCOL.md, "Streaming" and its state diagrams.
"""

from __future__ import annotations

from enum import Enum, auto

from enclave_cc.errors import PeerError, UsageError


class State(Enum):
    IDLE = auto()
    CALLING = auto()  # initiator of a unary stream: waits for the response
    CALLED = auto()  # acceptor of a unary stream: owes the response
    SENDING = auto()  # initiator, both directions open
    RECEIVING = auto()  # acceptor, both directions open
    DRAINING = auto()  # initiator, own direction closed
    ANSWERING = auto()  # acceptor, the initiator's direction closed
    CLOSED = auto()


class Move(Enum):
    """What is sent or received."""

    REQUEST = auto()  # flags empty: unary
    REQUEST_CLOSED = auto()  # `remote closed`: data may come back, none follows
    REQUEST_OPEN = auto()  # `remote open`: data follows
    DATA = auto()
    DATA_LAST = auto()  # `remote closed`
    RESPONSE = auto()


SENDS: dict[State, dict[Move, State]] = {
    State.IDLE: {
        Move.REQUEST: State.CALLING,
        Move.REQUEST_CLOSED: State.DRAINING,
        Move.REQUEST_OPEN: State.SENDING,
    },
    State.CALLING: {},
    State.CALLED: {Move.RESPONSE: State.CLOSED},
    State.SENDING: {Move.DATA: State.SENDING, Move.DATA_LAST: State.DRAINING},
    State.RECEIVING: {Move.DATA: State.RECEIVING, Move.DATA_LAST: State.CLOSED, Move.RESPONSE: State.CLOSED},
    State.DRAINING: {},
    State.ANSWERING: {Move.DATA: State.ANSWERING, Move.DATA_LAST: State.CLOSED, Move.RESPONSE: State.CLOSED},
    State.CLOSED: {},
}

RECEIVES: dict[State, dict[Move, State]] = {
    State.IDLE: {
        Move.REQUEST: State.CALLED,
        Move.REQUEST_CLOSED: State.ANSWERING,
        Move.REQUEST_OPEN: State.RECEIVING,
    },
    State.CALLING: {Move.RESPONSE: State.CLOSED},
    State.CALLED: {},
    State.SENDING: {Move.DATA: State.SENDING, Move.DATA_LAST: State.CLOSED, Move.RESPONSE: State.CLOSED},
    State.RECEIVING: {Move.DATA: State.RECEIVING, Move.DATA_LAST: State.ANSWERING},
    State.DRAINING: {Move.DATA: State.DRAINING, Move.DATA_LAST: State.CLOSED, Move.RESPONSE: State.CLOSED},
    State.ANSWERING: {},
    State.CLOSED: {},
}


def send(state: State, move: Move) -> State:
    """The state after sending. Raises `UsageError("wrong-state")`: our bug."""
    after = SENDS[state].get(move)
    if after is None:
        raise UsageError("wrong-state", f"a ttrpc stream that is {state.name.lower()} cannot send {move.name.lower()}")
    return after


def receive(state: State, move: Move) -> State:
    """The state after receiving. Raises `PeerError("malformed")`: the peer broke the protocol."""
    after = RECEIVES[state].get(move)
    if after is None:
        raise PeerError("malformed", f"{move.name.lower()} came on a ttrpc stream that is {state.name.lower()}")
    return after
