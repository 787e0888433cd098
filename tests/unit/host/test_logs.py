from __future__ import annotations

from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from enclave_cc.host.sandbox import logs
from enclave_cc.host.sandbox.logs import LogWriter


@settings(max_examples=100)
@given(st.lists(st.binary(min_size=1, max_size=60), max_size=12))
def test_what_was_written_is_read_back_whole(tmp_path_factory: object, parts: list[bytes]) -> None:
    path = Path(str(tmp_path_factory.mktemp("log"))) / "output.log"  # type: ignore[attr-defined]
    writer = LogWriter(path, limit=0)
    for part in parts:
        writer.write("stdout", part)
    writer.close()
    assert b"".join(text for _, _, text in logs.read_lines(path)) == b"".join(parts)


def test_streams_are_kept_apart(tmp_path: Path) -> None:
    writer = LogWriter(tmp_path / "l", limit=0)
    writer.write("stdout", b"half ")
    writer.write("stderr", b"error\n")
    writer.write("stdout", b"whole\n")
    writer.close()
    assert [(stream, text) for _, stream, text in logs.read_lines(tmp_path / "l")] == [
        ("stderr", b"error\n"),
        ("stdout", b"half whole\n"),
    ]


def test_a_log_stays_within_its_limit(tmp_path: Path) -> None:
    writer = LogWriter(tmp_path / "l", limit=20_000)
    for number in range(2000):
        writer.write("stdout", b"line %d\n" % number)
    writer.close()
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 20_000
    texts = [text for _, _, text in logs.read_lines(tmp_path / "l")]
    assert texts[-1] == b"line 1999\n"
    assert texts == [b"line %d\n" % number for number in range(2000 - len(texts), 2000)]


def test_a_long_line_is_written_in_parts(tmp_path: Path) -> None:
    writer = LogWriter(tmp_path / "l", limit=0)
    writer.write("stdout", b"x" * 40_000)
    assert (tmp_path / "l").stat().st_size > 40_000  # not held back until the newline comes
    writer.write("stdout", b"y\n")
    writer.close()
    assert b"".join(text for _, _, text in logs.read_lines(tmp_path / "l")) == b"x" * 40_000 + b"y\n"


def test_a_line_cut_off_by_a_crash_is_skipped() -> None:
    assert logs.parse_line(b"2026-01-01T00:00:00Z stdo") is None
    assert logs.parse_line(b"") is None
    assert logs.parse_line(b"2026-01-01T00:00:00Z stdout F a b") == ("2026-01-01T00:00:00Z", "stdout", b"a b\n")
