from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enclave_cc.host.sandbox import logs
from enclave_cc.host.sandbox.logs import LogWriter


def read_lines(path: Path) -> list[tuple[str, str, bytes]]:
    reader = logs.LogReader(path)
    entries = [logs.parse_line(line) for line in reader.read().split(b"\n")]
    reader.close()
    return [entry for entry in entries if entry is not None]


@settings(max_examples=100)
@given(st.lists(st.binary(min_size=1, max_size=60), max_size=12))
def test_what_was_written_is_read_back_whole(tmp_path_factory: object, parts: list[bytes]) -> None:
    path = Path(str(tmp_path_factory.mktemp("log"))) / "output.log"  # type: ignore[attr-defined]
    writer = LogWriter(path, limit=0)
    for part in parts:
        writer.write("stdout", part)
    writer.close()
    assert b"".join(text for _, _, text in read_lines(path)) == b"".join(parts)


def test_streams_are_kept_apart(tmp_path: Path) -> None:
    writer = LogWriter(tmp_path / "l", limit=0)
    writer.write("stdout", b"half ")
    writer.write("stderr", b"error\n")
    writer.write("stdout", b"whole\n")
    writer.close()
    assert [(stream, text) for _, stream, text in read_lines(tmp_path / "l")] == [
        ("stderr", b"error\n"),
        ("stdout", b"half whole\n"),
    ]


def test_a_log_stays_within_its_limit(tmp_path: Path) -> None:
    writer = LogWriter(tmp_path / "l", limit=20_000)
    for number in range(2000):
        writer.write("stdout", b"line %d\n" % number)
    writer.close()
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 20_000
    texts = [text for _, _, text in read_lines(tmp_path / "l")]
    assert texts[-1] == b"line 1999\n"
    assert texts == [b"line %d\n" % number for number in range(2000 - len(texts), 2000)]


def test_a_long_line_is_written_in_parts(tmp_path: Path) -> None:
    writer = LogWriter(tmp_path / "l", limit=0)
    writer.write("stdout", b"x" * 40_000)
    assert (tmp_path / "l").stat().st_size > 40_000  # not held back until the newline comes
    writer.write("stdout", b"y\n")
    writer.close()
    assert b"".join(text for _, _, text in read_lines(tmp_path / "l")) == b"x" * 40_000 + b"y\n"


def test_a_line_cut_off_by_a_crash_is_skipped() -> None:
    assert logs.parse_line(b"2026-01-01T00:00:00Z stdo") is None
    assert logs.parse_line(b"") is None
    assert logs.parse_line(b"2026-01-01T00:00:00Z stdout F a b") == ("2026-01-01T00:00:00Z", "stdout", b"a b\n")


def test_a_log_that_cannot_be_made_anew_loses_lines_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = LogWriter(tmp_path / "l", limit=200)
    writer.write("stdout", b"first\n")
    real = os.open

    def refuse(path: object, *arguments: int) -> int:
        if str(path).startswith(str(tmp_path)):
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(str(path), *arguments)

    monkeypatch.setattr(os, "open", refuse)
    for _ in range(5):
        writer.write("stdout", b"lost for want of space, and no error for whoever prints\n")
    monkeypatch.setattr(os, "open", real)
    writer.write("stdout", b"again\n")
    writer.close()
    assert [text for _, _, text in read_lines(tmp_path / "l")][-1] == b"again\n"


def test_no_half_line_stays_when_the_disk_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = LogWriter(tmp_path / "l", limit=0)
    real = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: real(descriptor, data[: len(data) // 2]))
    writer.write("stdout", b"cut\n")
    monkeypatch.setattr(os, "write", real)
    writer.write("stdout", b"whole\n")
    writer.close()
    assert [text for _, _, text in read_lines(tmp_path / "l")] == [b"whole\n"]


def test_a_follower_misses_nothing_when_the_log_is_turned_over(tmp_path: Path) -> None:
    writer = LogWriter(tmp_path / "l", limit=4000)
    reader = logs.LogReader(tmp_path / "l")
    seen = b""
    for number in range(500):
        writer.write("stdout", b"%d\n" % number)
        if number % 7 == 0:
            seen += reader.read()
    writer.close()
    seen += reader.read()
    reader.close()
    entries = [logs.parse_line(line) for line in seen.split(b"\n")]
    assert [entry[2] for entry in entries if entry is not None] == [b"%d\n" % number for number in range(500)]
