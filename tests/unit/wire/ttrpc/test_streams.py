"""The table: complete, and both sides' views agree on every run that it allows."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enclave_cc.errors import PeerError, UsageError
from enclave_cc.wire.ttrpc import streams
from enclave_cc.wire.ttrpc.streams import RECEIVES, SENDS, Move, State


def test_every_state_has_its_row() -> None:
    assert set(SENDS) == set(RECEIVES) == set(State)


def test_what_is_not_in_the_table_is_refused() -> None:
    for state in State:
        for move in Move:
            if move not in SENDS[state]:
                with pytest.raises(UsageError) as ours:
                    streams.send(state, move)
                assert ours.value.code == "wrong-state"
            if move not in RECEIVES[state]:
                with pytest.raises(PeerError) as theirs:
                    streams.receive(state, move)
                assert theirs.value.code == "malformed"


# How the other side sees a state of ours.
MIRROR = {
    State.IDLE: State.IDLE,
    State.CALLING: State.CALLED,
    State.SENDING: State.RECEIVING,
    State.DRAINING: State.ANSWERING,
    State.CLOSED: State.CLOSED,
}
MIRROR |= {theirs: ours for ours, theirs in MIRROR.items()}


@given(st.lists(st.tuples(st.booleans(), st.sampled_from(list(Move))), max_size=12))
def test_both_sides_stay_each_others_mirror(run: list[tuple[bool, Move]]) -> None:
    sides = {True: State.IDLE, False: State.IDLE}
    for sender, move in run:
        if move not in SENDS[sides[sender]]:
            continue
        sides[sender] = streams.send(sides[sender], move)
        sides[not sender] = streams.receive(sides[not sender], move)
        assert sides[not sender] is MIRROR[sides[sender]]


def test_unary_streams_carry_no_data() -> None:
    assert Move.DATA not in SENDS[State.CALLING] | SENDS[State.CALLED] | RECEIVES[State.CALLING] | RECEIVES[State.CALLED]
