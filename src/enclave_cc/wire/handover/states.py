"""The states of a handover: the same table for both roles, since both see the same four messages in one order.

Anything that affects the state is in this file. A refusal is final.
"""

from __future__ import annotations

from enum import Enum, auto

from enclave_cc.errors import PeerError
from enclave_cc.wire.handover.messages import Type


class State(Enum):
    NEW = auto()
    GREETED = auto()  # after the hello
    OFFERED = auto()  # after the offer
    PROVEN = auto()  # after the proof
    RELEASED = auto()  # after the release: used up
    REFUSED = auto()  # somebody's message did not hold: used up


MOVES: dict[State, dict[Type, State]] = {
    State.NEW: {Type.HELLO: State.GREETED},
    State.GREETED: {Type.OFFER: State.OFFERED},
    State.OFFERED: {Type.PROOF: State.PROVEN},
    State.PROVEN: {Type.RELEASE: State.RELEASED},
    State.RELEASED: {},
    State.REFUSED: {},
}

# How far a message leads: one that leads no further than we are has been here before.
_ORDER = [State.NEW, State.GREETED, State.OFFERED, State.PROVEN, State.RELEASED]


def move(state: State, message: Type) -> State:
    """The state after `message`. Raises `PeerError` ("handover-replayed" for a message that was here before)."""
    after = MOVES[state].get(message)
    if after is not None:
        return after
    name = message.name.lower()
    if state is State.REFUSED:
        raise PeerError("handover-refused", f"a {name} came after this handover was refused")
    if int(message) <= _ORDER.index(state):
        raise PeerError("handover-replayed", f"a second {name} came in one handover")
    raise PeerError("handover-refused", f"a {name} came out of order")
