"""Who is let in, and that nobody takes all the room."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from enclave_cc.owner.kbs.admission import Admission, TooMany
from enclave_cc.owner.kbs.metrics import Metrics
from enclave_cc.owner.kbs.rate_limits import RateLimits


@pytest.fixture
def held() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def admission(**limits: int) -> Admission:
    return Admission(RateLimits(**limits), Metrics())  # type: ignore[arg-type]


def test_one_address_does_not_take_all_places_in_the_queue(held: ExitStack) -> None:
    gate = admission(waiting=10)
    for _ in range(5):
        held.enter_context(gate.queue("greedy"))
    with pytest.raises(TooMany):
        held.enter_context(gate.queue("greedy"))
    for number in range(5):
        held.enter_context(gate.queue(f"other-{number}"))
    with pytest.raises(TooMany):
        held.enter_context(gate.queue("one too many"))
    held.close()
    with gate.queue("greedy"), gate.queue("other"):  # all was given back
        pass


def test_one_address_does_not_take_all_room_for_bodies(held: ExitStack) -> None:
    gate = admission(buffered=10 << 20)
    for _ in range(5):
        held.enter_context(gate.buffer("greedy"))(1 << 20)
    with pytest.raises(TooMany):
        held.enter_context(gate.buffer("greedy"))(1)
    take = held.enter_context(gate.buffer("other"))
    for _ in range(5):
        take(1 << 20)
    with pytest.raises(TooMany):
        held.enter_context(gate.buffer("third"))(1)
    held.close()
    with gate.buffer("greedy") as take, gate.buffer("other") as take_other:  # all was given back
        take(5 << 20)
        take_other(5 << 20)


def test_the_smallest_queue_has_room_for_one(held: ExitStack) -> None:
    gate = admission(waiting=1)
    held.enter_context(gate.queue("a"))
    with pytest.raises(TooMany):
        held.enter_context(gate.queue("b"))
