"""The cache before a collateral service: who waits, who does not, and what a failure costs."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from enclave_cc.errors import PeerError
from enclave_cc.owner.collateral.service import CachedService, Freshness
from enclave_cc.owner.collateral.source import Found, Sources
from enclave_cc.owner.verifier.quote import Origin
from enclave_cc.owner.verifier.roots import TrustedRoot
from enclave_cc.simulator.platform import Condition
from enclave_cc.wire.sgx.collateral import Collateral

from .conftest import NOW

DAY = 86400


class Service:
    """A service whose every answer a test decides; the real one's behaviour is test_pccs.py's."""

    def __init__(self, answer: Callable[[], Collateral]) -> None:
        self.answer = answer
        self.calls = 0
        self.gate = threading.Event()
        self.gate.set()
        self.started = threading.Semaphore(0)

    def fetch(self, fmspc: str, ca: str) -> Collateral:
        self.calls += 1
        self.started.release()
        assert self.gate.wait(20)
        return self.answer()

    def close(self) -> None:
        pass


class Fixture:
    def __init__(self, machine: Any, answer: Callable[[], Collateral] | None = None, **freshness: float) -> None:
        self.machine = machine
        self.at = NOW
        self.time = 0.0
        self.reports: list[str] = []
        self.service = Service(answer or (lambda: machine.collateral(self.at)))
        self.cache = CachedService(
            self.service,
            Freshness(**{"refresh": 3600, "retry": 30, "deadline": 20, **freshness}),
            report=lambda where, why: self.reports.append(f"{where}: {why}"),
            clock=lambda: self.time,
        )

    def find(self, origin: Origin | None = None, root: TrustedRoot | None = None) -> Found | None:
        return self.cache.find(origin or self.machine.origin, root or self.machine.root, self.at)

    def refused(self, **options: Any) -> PeerError:
        with pytest.raises(PeerError) as caught:
            self.find(**options)
        return caught.value

    def settle(self) -> None:
        self.service.gate.set()
        for thread in list(self.cache._threads):
            thread.join()


def test_cached_collateral_asks_nobody(machine: Any) -> None:
    fixture = Fixture(machine)
    found = [fixture.find() for _ in range(20)]
    assert fixture.service.calls == 1
    assert machine.verify(found[0].collateral) == "UpToDate"
    assert all(each is found[0] for each in found)


def test_many_waiters_one_fetch(machine: Any) -> None:
    fixture = Fixture(machine)
    fixture.service.gate.clear()
    found: list[object] = []
    threads = [threading.Thread(target=lambda: found.append(fixture.find())) for _ in range(16)]
    for thread in threads:
        thread.start()
    assert fixture.service.started.acquire(timeout=20)
    fixture.service.gate.set()
    for thread in threads:
        thread.join()
    assert fixture.service.calls == 1
    assert len(found) == 16
    assert len({id(each) for each in found}) == 1


def test_stale_collateral_is_answered_while_it_is_fetched_again(machine: Any) -> None:
    fixture = Fixture(machine)
    first = fixture.find()
    fixture.time, fixture.at = 3600.0, NOW + 3600
    fixture.service.gate.clear()
    for _ in range(5):
        assert fixture.find() is first  # without waiting: the service does not answer
    assert fixture.service.started.acquire(timeout=20)
    assert fixture.service.started.acquire(timeout=20)
    fixture.settle()
    assert fixture.service.calls == 2
    newer = fixture.find()
    assert newer is not first
    assert fixture.service.calls == 2


def test_expired_collateral_waits_for_a_new_one(machine: Any) -> None:
    fixture = Fixture(machine)
    first = fixture.find()
    fixture.time, fixture.at = 31.0 * DAY, NOW + 31 * DAY
    newer = fixture.find()
    assert newer is not first
    assert newer.start > first.end - 30 * DAY
    assert machine.verify(newer.collateral, fixture.at) == "UpToDate"


def test_a_failure_is_believed_for_a_while(machine: Any) -> None:
    def fail() -> Collateral:
        raise PeerError("collateral-refused", "the service is down")

    fixture = Fixture(machine, fail)
    for _ in range(5):
        error = fixture.refused()
        assert (error.code, error.what) == ("collateral-refused", "the service is down")
    assert fixture.service.calls == len(fixture.reports) == 1
    assert machine.origin.fmspc.hex() in fixture.reports[0]
    fixture.time = 30.0
    fixture.refused()
    assert fixture.service.calls == 2
    fixture.service.answer = machine.collateral
    fixture.time = 60.0
    assert fixture.find() is not None


def test_stale_collateral_outlives_a_service_that_is_down(machine: Any) -> None:
    fixture = Fixture(machine)
    first = fixture.find()
    fixture.service.answer = lambda: exec("raise OSError('gone')")  # type: ignore[assignment, return-value]
    for step in range(1, 6):
        fixture.time = 3600.0 + 40 * step
        assert fixture.find() is first
        fixture.settle()
    assert fixture.service.calls == 6
    assert "OSError" in fixture.reports[0]
    fixture.at, fixture.time = NOW + 31 * DAY, 31.0 * DAY
    assert fixture.refused().code == "collateral-refused"


@pytest.mark.parametrize(
    "condition", [Condition(wrong_signer=True), Condition(fmspc=b"OTHERS"), Condition(platform_ca_revoked=True)], ids=str
)
def test_a_broken_answer_replaces_nothing(machine: Any, condition: Condition) -> None:
    fixture = Fixture(machine)
    first = fixture.find()
    fixture.service.answer = lambda: machine.platform.collateral(NOW, condition)
    fixture.time = 3600.0
    assert fixture.find() is first
    fixture.settle()
    fixture.time = 3601.0
    assert fixture.find() is first
    assert "answer" in fixture.reports[0]


def test_an_older_answer_replaces_nothing(machine: Any) -> None:
    """A service that is behind, or made to be, cannot bring a TCB recovery back to before it."""
    fixture = Fixture(machine)
    first = fixture.find()
    fixture.service.answer = lambda: machine.collateral(NOW - DAY)
    fixture.time = 3600.0
    fixture.find()
    fixture.settle()
    assert fixture.find() is first


def test_a_service_that_hangs_costs_the_deadline_only(machine: Any) -> None:
    fixture = Fixture(machine, deadline=0.05)
    fixture.service.gate.clear()
    assert "in time" in fixture.refused().what
    assert "in time" in fixture.refused().what
    fixture.settle()
    assert fixture.service.calls == 1
    assert fixture.find() is not None


def test_platforms_that_no_root_vouches_for_cost_nothing(machine: Any, stranger: Any) -> None:
    """Anybody can write any FMSPC into a certificate; the service, and the cache, are for certified platforms."""
    fixture = Fixture(machine)
    ours, theirs = machine.origin, stranger.origin
    for forged in (
        Origin(b"\1\2\3\4\5\6", ours.pck_ca, ours.root, ours.pck_ca_certificate, theirs.pck),
        Origin(b"\1\2\3\4\5\6", ours.pck_ca, ours.root, theirs.pck_ca_certificate, theirs.pck),
    ):
        assert fixture.refused(origin=forged).code == "quote-refused"
    assert fixture.service.calls == 0
    assert not fixture.cache._entries


def test_close_waits_for_what_runs(machine: Any) -> None:
    fixture = Fixture(machine)
    fixture.find()
    fixture.time = 3600.0
    fixture.service.gate.clear()
    fixture.find()
    closing = threading.Thread(target=fixture.cache.close)
    closing.start()
    fixture.service.gate.set()
    closing.join(20)
    assert not closing.is_alive()


class Fixed:
    def __init__(self, answer: Found | PeerError | None) -> None:
        self.answer = answer

    def find(self, origin: Origin, root: TrustedRoot, at: int) -> Found | None:
        if isinstance(self.answer, PeerError):
            raise self.answer
        return self.answer


def test_the_first_source_with_collateral_that_holds(machine: Any) -> None:
    good, old = Found.read(machine.collateral()), Found.read(machine.collateral(NOW - 60 * DAY))
    down = PeerError("collateral-refused", "down")

    def ask(*answers: Found | PeerError | None) -> Found | None:
        return Sources([Fixed(answer) for answer in answers]).find(machine.origin, machine.root, NOW)

    assert ask(None, old, down, good) is good
    assert ask(old, None) is old
    assert ask(down, old) is old
    assert ask(None, None) is None
    with pytest.raises(PeerError, match="down"):
        ask(None, down)
