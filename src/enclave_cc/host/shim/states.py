"""The life of a task or an exec as a table. Who moves it is not known here; an illegal move raises."""

from __future__ import annotations

from enum import IntEnum

from enclave_cc.errors import UsageError
from enclave_cc.wire.pb import task


class State(IntEnum):
    """`CREATING`: asked for, and not there yet; containerd is told "created"."""

    CREATING = 0
    CREATED = 1
    STARTING = 2
    RUNNING = 3
    PAUSED = 4
    STOPPED = 5


class Event(IntEnum):
    """What can happen to it."""

    CREATE = 0
    START = 1
    RUN = 2
    PAUSE = 3
    RESUME = 4
    EXIT = 5


TRANSITIONS: dict[State, dict[Event, State]] = {
    State.CREATING: {Event.CREATE: State.CREATED, Event.EXIT: State.STOPPED},
    State.CREATED: {Event.START: State.STARTING, Event.EXIT: State.STOPPED},
    State.STARTING: {Event.RUN: State.RUNNING, Event.EXIT: State.STOPPED},
    State.RUNNING: {Event.PAUSE: State.PAUSED, Event.EXIT: State.STOPPED},
    State.PAUSED: {Event.RESUME: State.RUNNING, Event.EXIT: State.STOPPED},
    State.STOPPED: {},
}

# containerd's word for each
STATUS = {
    State.CREATING: task.CREATED,
    State.CREATED: task.CREATED,
    State.STARTING: task.CREATED,
    State.RUNNING: task.RUNNING,
    State.PAUSED: task.PAUSED,
    State.STOPPED: task.STOPPED,
}


def advance(state: State, event: Event) -> State:
    """The next state. Raises `UsageError("wrong-state")`."""
    try:
        return TRANSITIONS[state][event]
    except KeyError:
        raise UsageError("wrong-state", f"a task that is {state.name.lower()} cannot {event.name.lower()}") from None
