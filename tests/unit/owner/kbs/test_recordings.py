"""Recordings, on SQLite and PostgreSQL: written without waiting, bounded, and given up rather than waited for."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest

from enclave_cc.errors import UsageError
from enclave_cc.owner.kbs import recordings
from enclave_cc.owner.kbs.evidence import VerifiedEvidence
from enclave_cc.owner.kbs.recordings import Recorder, Recording, RecordingSettings
from enclave_cc.owner.kbs.settings import Section
from enclave_cc.owner.storage.database import Database

DAY = 24 * 3600
VERIFIED = [VerifiedEvidence("sgx", "cpu", {"tcb_status": "UpToDate"}, "aa", "bb")]


class Clock:
    now = 1_000_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def make(database: Database, clock: Clock) -> Iterator[Callable[..., Recorder]]:
    made: list[Recorder] = []

    def make_one(**settings: object) -> Recorder:
        made.append(Recorder(database, RecordingSettings(**settings), now=clock))  # type: ignore[arg-type]
        return made[-1]

    yield make_one
    for each in made:
        each.close()


def test_what_was_put_is_found(make: Callable[..., Recorder]) -> None:
    recorder = make()
    recorder.attest("a1", "sgx", b'{"x":1}', VERIFIED)
    recorder.attest("a2", "sgx", b"\xff", None, code="quote-refused")
    recorder.release("r1", "a1", {"plugin": "resource", "segments": ["a", "b", "c"], "query": {}})
    recorder.release("r2", "", {"plugin": "resource", "segments": ["a"], "query": {}}, claims={"submods": {}}, code="kbs-denied")
    first, second, third, fourth = recorder.list()
    assert (first.stage, first.subject, first.outcome, first.document["body"]) == ("attest", "a1", "allow", '{"x":1}')
    assert first.document["verified"][0]["claims"] == {"tcb_status": "UpToDate"}
    assert (second.outcome, second.code, second.document["verified"]) == ("deny", "quote-refused", None)
    assert (third.subject, third.decision, third.document["request"]["segments"]) == ("a1", "r1", ["a", "b", "c"])
    assert fourth.document["claims"] == {"submods": {}}
    assert recorder.list(after=second.number) == [third, fourth]
    assert recorder.list(limit=1) == [first]
    assert recorder.find_attestation("a1") == first
    assert recorder.find_attestation("r1") is None
    assert Recording.from_json(first.to_json()) == first


def test_bounded_by_count(make: Callable[..., Recorder]) -> None:
    recorder = make(count=10)
    for number in range(600):
        recorder.release(str(number), "s", {})
        if number % 100 == 99:
            recorder.flush()
    kept = [each.decision for each in recorder.list(limit=1000)]
    assert len(kept) < 400
    assert kept[-1] == "599"


def test_bounded_by_age(make: Callable[..., Recorder], clock: Clock, database: Database) -> None:
    recorder = make(days=1)
    recorder.release("old", "s", {})
    recorder.flush()
    clock.now += 2 * DAY
    assert recorder.list() == []  # not shown, even before it is removed
    again = make(days=1)
    again.release("new", "s", {})
    assert [each.decision for each in again.list()] == ["new"]
    with database.read() as db:
        assert db.execute("SELECT count(*) FROM recording").fetchone()[0] == 1
    assert again.list(since=int(clock.now) + 1) == []


def test_turned_off_and_too_large(make: Callable[..., Recorder]) -> None:
    off = make(enabled=False)
    off.attest("a", "sgx", b"{}", VERIFIED)
    off.release("r", "a", {})
    assert off.list() == []
    on = make()
    on.attest("a", "sgx", b"x" * (recordings.MAX_BODY + 1), VERIFIED)
    assert on.list() == []


def test_many_threads(make: Callable[..., Recorder]) -> None:
    recorder = make()
    threads = [
        threading.Thread(target=lambda n=n: [recorder.release(f"{n}-{i}", "s", {}) for i in range(50)])  # type: ignore[misc]
        for n in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({each.decision for each in recorder.list(limit=1000)}) == 400


def test_what_cannot_be_written_is_reported_and_nobody_waits(database: Database, clock: Clock) -> None:
    lost: list[str] = []
    recorder = Recorder(database, RecordingSettings(), report=lost.append, now=clock)
    recorder.release("r", "a\0b", {})
    recorder.flush()
    recorder.release("after", "s", {})
    assert [each.decision for each in recorder.list()] == ["after"]
    assert lost == ["1 recordings: usage"]
    recorder.close()
    recorder.close()


def test_settings() -> None:
    read = RecordingSettings.read(Section({"enabled": False, "count": 5, "days": 0.5}, name="recording", path="kbs.toml"))
    assert read == RecordingSettings(False, 5, 0.5)
    for wrong in ({"enabled": 1}, {"count": 0}, {"count": "x"}, {"days": -1}, {"weeks": 1}):
        with pytest.raises(UsageError) as refused:
            RecordingSettings.read(Section(wrong, name="recording", path="kbs.toml"))
        assert refused.value.code == "bad-config"


@pytest.mark.parametrize("value", [None, 5, {}, {"number": "x"}])
def test_exports_of_another_form(value: object) -> None:
    with pytest.raises(UsageError):
        Recording.from_json(value)


def test_strangers_cannot_push_recordings_out(make: Callable[..., Recorder], clock: Clock) -> None:
    """Refused evidence costs nobody a platform: whoever sends it all day long leaves room for what was accepted."""
    recorder = make(count=1000)
    recorder.attest("good", "sgx", b"{}", VERIFIED)
    for number in range(5000):
        recorder.attest(f"bad-{number}", "sgx", b"{}", None, code="quote-refused")
    recorder.attest("large", "sgx", b"x" * (recordings.MAX_REFUSED + 1), None, code="quote-refused")
    found = [each.decision for each in recorder.list(limit=10_000)]
    assert found[0] == "good"
    assert 0 < len(found) - 1 <= recordings.REFUSED.burst
    assert "large" not in found
    clock.now += 10
    recorder.attest("later", "sgx", b"{}", None, code="quote-refused")
    assert recorder.list(limit=10_000)[-1].decision == "later"


def test_what_waits_is_bounded_by_its_size(database: Database, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    lost: list[str] = []
    recorder = Recorder(database, RecordingSettings(), report=lost.append, now=clock)
    monkeypatch.setattr(recordings, "_WAITING_BYTES", 300_000)
    with database.write(lock="held"):  # the writer cannot go on
        for number in range(20):
            recorder.attest(str(number), "sgx", b"x" * 100_000, VERIFIED)
    kept = [each.decision for each in recorder.list()]
    assert kept[0] == "0"
    assert len(kept) < 10
    recorder.attest("after", "sgx", b"x" * 100_000, VERIFIED)
    assert recorder.list()[-1].decision == "after"
    recorder.close()
    assert sum(int(each.split()[0]) for each in lost) == 20 - len(kept)
