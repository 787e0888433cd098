"""The life of a pod as a table. Who moves it is not known here; an illegal move raises."""

from __future__ import annotations

from enum import StrEnum

from enclave_cc.errors import UsageError


class State(StrEnum):
    """`EXITED`, `FAILED` and `LOST` are final: nothing of the pod runs, only its record is left."""

    CREATED = "created"
    STARTING = "starting"  # sandbox up or coming up; image pulled, workload not yet running
    RUNNING = "running"
    STOPPING = "stopping"
    EXITED = "exited"  # the workload ended
    FAILED = "failed"  # it never ran, or something of ours ended it
    LOST = "lost"  # its supervisor was killed


class Event(StrEnum):
    """What can happen to a pod."""

    START = "start"
    RUN = "run"
    STOP = "stop"
    EXIT = "exit"
    FAIL = "fail"
    LOSE = "lose"


FINAL = frozenset({State.EXITED, State.FAILED, State.LOST})

TRANSITIONS: dict[State, dict[Event, State]] = {
    State.CREATED: {Event.START: State.STARTING, Event.FAIL: State.FAILED, Event.LOSE: State.LOST},
    State.STARTING: {
        Event.RUN: State.RUNNING,
        Event.STOP: State.STOPPING,
        Event.EXIT: State.EXITED,  # it ran and ended between two looks
        Event.FAIL: State.FAILED,
        Event.LOSE: State.LOST,
    },
    State.RUNNING: {Event.STOP: State.STOPPING, Event.EXIT: State.EXITED, Event.FAIL: State.FAILED, Event.LOSE: State.LOST},
    State.STOPPING: {
        Event.STOP: State.STOPPING,
        Event.EXIT: State.EXITED,
        Event.FAIL: State.FAILED,
        Event.LOSE: State.LOST,
    },
    State.EXITED: {},
    State.FAILED: {},
    State.LOST: {},
}


def advance(state: State, event: Event) -> State:
    """The next state. Raises `UsageError("wrong-state")`."""
    try:
        return TRANSITIONS[state][event]
    except KeyError:
        raise UsageError("wrong-state", f"a pod that is {state} cannot {event}") from None
