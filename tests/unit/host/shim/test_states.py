"""The table of a task's life."""

from __future__ import annotations

import pytest

from enclave_cc.errors import UsageError
from enclave_cc.host.shim.states import STATUS, TRANSITIONS, Event, State, advance
from enclave_cc.wire.pb import task


def test_a_life() -> None:
    state = State.CREATING
    for event in (Event.CREATE, Event.START, Event.RUN, Event.PAUSE, Event.RESUME, Event.EXIT):
        state = advance(state, event)
    assert state is State.STOPPED


def test_every_state_but_the_last_can_end() -> None:
    assert all(TRANSITIONS[state][Event.EXIT] is State.STOPPED for state in State if state is not State.STOPPED)
    for event in Event:
        with pytest.raises(UsageError) as caught:
            advance(State.STOPPED, event)
        assert caught.value.code == "wrong-state"


def test_containerd_is_told_no_state_that_it_does_not_know() -> None:
    assert set(STATUS) == set(State)
    assert set(STATUS.values()) == {task.CREATED, task.RUNNING, task.PAUSED, task.STOPPED}
