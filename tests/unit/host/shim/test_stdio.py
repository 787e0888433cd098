"""Streams as containerd names them: FIFOs, files, programs, terminals."""

from __future__ import annotations

import os
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from enclave_cc.errors import EnclaveCcError
from enclave_cc.host.sandbox.runc import run_program
from enclave_cc.host.shim.stdio import Names, Streams


@pytest.fixture
def descriptors() -> Iterator[None]:
    """Nothing stays open."""
    before = set(os.listdir("/proc/self/fd"))
    yield
    deadline = time.monotonic() + 5
    while set(os.listdir("/proc/self/fd")) - before and time.monotonic() < deadline:
        time.sleep(0.02)
    assert len(set(os.listdir("/proc/self/fd")) - before) == 0


def open_streams(**names: str | bool) -> Streams:
    return Streams(Names(**names), container="c1", namespace="n1", deadline=5)  # type: ignore[arg-type]


def run(streams: Streams, script: str) -> int:
    try:
        return run_program(["/bin/sh", "-c", script], streams.stdio, os.environ, deadline=10)
    finally:
        streams.release()


def make_fifo(place: Path, name: str) -> str:
    os.mkfifo(place / name)
    return str(place / name)


def read_to_end(name: str, into: list[bytes]) -> threading.Thread:
    def read() -> None:
        with open(name, "rb") as file:
            into.append(file.read())

    thread = threading.Thread(target=read)
    thread.start()
    return thread


@pytest.mark.usefixtures("descriptors")
def test_fifos(tmp_path: Path) -> None:
    out, err = make_fifo(tmp_path, "out"), make_fifo(tmp_path, "err")
    got_out: list[bytes] = []
    got_err: list[bytes] = []
    readers = [read_to_end(out, got_out), read_to_end(err, got_err)]
    streams = open_streams(stdout=out, stderr=err)
    assert run(streams, "echo out; echo err >&2; cat; exit 3") == 3  # input is empty where none is named
    for reader in readers:
        reader.join(5)  # the output ends with the process: containerd waits for that
    assert (got_out, got_err) == ([b"out\n"], [b"err\n"])
    streams.close()


@pytest.mark.usefixtures("descriptors")
@pytest.mark.parametrize("late", [False, True])
def test_input_ends_with_its_writer(tmp_path: Path, late: bool) -> None:
    """Also when the writer is gone before the process starts, or comes only later."""
    name, out = make_fifo(tmp_path, "in"), make_fifo(tmp_path, "out")
    got: list[bytes] = []
    reader = read_to_end(out, got)

    def write() -> None:
        if late:
            time.sleep(0.3)
        with open(name, "wb") as file:
            file.write(b"one\ntwo\n")

    writer = threading.Thread(target=write)
    writer.start()
    streams = open_streams(stdin=name, stdout=out)
    assert run(streams, "cat") == 0
    writer.join(5)
    reader.join(5)
    assert got == [b"one\ntwo\n"]
    streams.close()


@pytest.mark.usefixtures("descriptors")
def test_an_input_that_nobody_opened_ends_when_containerd_closes_it(tmp_path: Path) -> None:
    name = make_fifo(tmp_path, "in")
    streams = open_streams(stdin=name)
    timer = threading.Timer(0.3, streams.close_input)
    timer.start()
    assert run(streams, "cat") == 0
    timer.join()
    streams.close()


@pytest.mark.usefixtures("descriptors")
def test_a_file(tmp_path: Path) -> None:
    place = tmp_path / "deep/er/log"
    for _ in range(2):
        streams = open_streams(stdout=f"file://{place}")
        assert run(streams, "echo out; echo err >&2") == 0
        streams.close()
    assert place.read_text() == "out\nerr\nout\nerr\n"


LOGGER = """#!/bin/sh
echo "$CONTAINER_ID $CONTAINER_NAMESPACE $*" > {place}/called
printf x >&5
exec 5>&-
cat <&3 > {place}/out &
cat <&4 > {place}/err
wait
touch {place}/ended
"""


@pytest.mark.usefixtures("descriptors")
def test_a_logging_program(tmp_path: Path) -> None:
    program = tmp_path / "logger"
    program.write_text(LOGGER.format(place=tmp_path))
    program.chmod(0o755)
    streams = open_streams(stdout=f"binary://{program}?level=info&plain")
    assert run(streams, "echo out; echo err >&2") == 0
    streams.close()
    deadline = time.monotonic() + 5
    while not (tmp_path / "ended").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert (tmp_path / "called").read_text() == "c1 n1 level info plain\n"
    assert ((tmp_path / "out").read_text(), (tmp_path / "err").read_text()) == ("out\n", "err\n")


@pytest.mark.usefixtures("descriptors")
@pytest.mark.parametrize("name", ["binary:///no/such/program", "https://h/x", "/no/such/fifo/at/all", "file:///proc/x/y"])
def test_what_cannot_be_opened_leaves_nothing(name: str) -> None:
    with pytest.raises(EnclaveCcError):
        open_streams(stdout=name)


@pytest.mark.usefixtures("descriptors")
def test_a_terminal(tmp_path: Path) -> None:
    name, out = make_fifo(tmp_path, "in"), make_fifo(tmp_path, "out")
    got: list[bytes] = []
    reader = read_to_end(out, got)
    feeder = os.open(name, os.O_RDWR)
    streams = open_streams(stdin=name, stdout=out, terminal=True)
    null = os.fstat(streams.stdio.stdout)
    assert stat.S_ISCHR(null.st_mode)  # the start's own streams are nobody's
    streams.release()
    master, slave = os.openpty()
    streams.attach(master)
    streams.resize(24, 80)
    os.write(feeder, b"hello\n")
    assert os.read(slave, 100) == b"hello\n"
    assert os.get_terminal_size(slave) == (80, 24)
    os.write(slave, b"last words")
    os.close(slave)
    streams.close()
    reader.join(5)
    os.close(feeder)
    assert got == [b"hello\r\nlast words"]


def test_output_waits_for_a_reader_that_comes_late(tmp_path: Path) -> None:
    """And reaches it, however quick the process: its side is not left waiting for a writer."""
    out = make_fifo(tmp_path, "out")
    got: list[bytes] = []
    late = threading.Timer(0.2, lambda: got.append(Path(out).read_bytes()))
    late.start()
    streams = open_streams(stdout=out)
    os.write(streams.stdio.stdout, b"quick")
    streams.release()
    streams.close()
    late.join(5)
    assert got == [b"quick"]
