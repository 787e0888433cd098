from __future__ import annotations

from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from enclave_cc.host.sandbox import journal
from enclave_cc.host.sandbox.journal import Journal, Kind, Step


def test_steps_come_back_in_order(tmp_path: Path) -> None:
    book = Journal(tmp_path / "journal")
    book.note(Kind.CGROUP)
    book.note(Kind.CONTAINER, id="c1")
    book.note(Kind.LEASE, path="/x y\n")
    book.close()
    assert journal.read(tmp_path / "journal") == [
        Step(Kind.CGROUP),
        Step(Kind.CONTAINER, {"id": "c1"}),
        Step(Kind.LEASE, {"path": "/x y\n"}),
    ]


def test_an_absent_journal_is_empty(tmp_path: Path) -> None:
    assert journal.read(tmp_path / "journal") == []


def test_a_journal_cut_anywhere_gives_its_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    book = Journal(path)
    for number in range(5):
        book.note(Kind.CONTAINER, id=f"c{number}")
    book.close()
    whole = path.read_bytes()
    for size in range(len(whole) + 1):
        path.write_bytes(whole[:size])
        assert len(journal.read(path)) == whole[:size].count(b"\n")


@settings(max_examples=50)
@given(st.binary(max_size=200))
def test_garbage_is_no_step(tmp_path_factory: object, data: bytes) -> None:
    path = Path(str(tmp_path_factory.getbasetemp())) / "garbage"  # type: ignore[attr-defined]
    path.write_bytes(data)
    assert all(isinstance(step, Step) for step in journal.read(path))
