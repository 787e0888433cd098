"""The states of a container inside the agent. Anything that affects them is in this file."""

from __future__ import annotations

from enum import Enum, auto

from enclave_cc.errors import PeerError


class State(Enum):
    """The lower-case names travel in GetStatus and GetPullProgress."""

    NEW = auto()
    PULLING = auto()
    FAILED = auto()  # the pull did; it may be tried again
    PULLED = auto()
    CREATED = auto()  # the launch statement is fixed; an app enclave may ask
    RELEASED = auto()  # the keys went over, once
    REMOVED = auto()


class Event(Enum):
    PULL = auto()
    PULL_FAILED = auto()
    PULL_DONE = auto()
    CREATE = auto()
    RELEASE = auto()
    REMOVE = auto()


TABLE: dict[State, dict[Event, State]] = {
    State.NEW: {Event.PULL: State.PULLING, Event.REMOVE: State.REMOVED},
    State.PULLING: {Event.PULL_DONE: State.PULLED, Event.PULL_FAILED: State.FAILED, Event.REMOVE: State.REMOVED},
    State.FAILED: {Event.PULL: State.PULLING, Event.REMOVE: State.REMOVED},
    State.PULLED: {Event.PULL: State.PULLING, Event.CREATE: State.CREATED, Event.REMOVE: State.REMOVED},
    State.CREATED: {Event.RELEASE: State.RELEASED, Event.REMOVE: State.REMOVED},
    State.RELEASED: {Event.REMOVE: State.REMOVED},
    State.REMOVED: {},
}


def move(state: State, event: Event) -> State:
    """The state after `event`. Raises `PeerError("wrong-state")`: the host asks in the wrong order."""
    after = TABLE[state].get(event)
    if after is None:
        raise PeerError("wrong-state", f"{event.name.lower().replace('_', ' ')}: the container is {state.name.lower()}")
    return after
