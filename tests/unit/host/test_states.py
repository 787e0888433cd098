from __future__ import annotations

import itertools

import pytest

from enclave_cc.errors import UsageError
from enclave_cc.host.sandbox.states import FINAL, TRANSITIONS, Event, State, advance


def test_every_state_has_a_row_and_final_ones_lead_nowhere() -> None:
    assert set(TRANSITIONS) == set(State)
    assert {state for state, row in TRANSITIONS.items() if not row} == FINAL


def test_a_supervisor_may_be_lost_in_any_state_that_is_not_final() -> None:
    assert all(advance(state, Event.LOSE) is State.LOST for state in State if state not in FINAL)


def test_the_usual_way() -> None:
    state = State.CREATED
    for event in (Event.START, Event.RUN, Event.STOP, Event.EXIT):
        state = advance(state, event)
    assert state is State.EXITED


def test_whatever_is_not_in_the_table_is_refused() -> None:
    for state, event in itertools.product(State, Event):
        if event not in TRANSITIONS[state]:
            with pytest.raises(UsageError) as caught:
                advance(state, event)
            assert caught.value.code == "wrong-state"


def test_every_state_but_the_first_can_be_reached() -> None:
    reached, waiting = {State.CREATED}, [State.CREATED]
    while waiting:
        for state in TRANSITIONS[waiting.pop()].values():
            if state not in reached:
                reached.add(state)
                waiting.append(state)
    assert reached == set(State)
