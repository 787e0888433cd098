from __future__ import annotations

import os
import pty
import termios
import threading

from enclave_cc.host.sandbox.streams import InputPump, Pump, RawTerminal, get_size, write_all


def test_a_pump_moves_everything_and_shows_it() -> None:
    (source, feed), (out, sink) = os.pipe(), os.pipe()
    seen: list[bytes] = []
    pump = Pump(source, sink, seen.append)
    pump.start()
    os.write(feed, b"one ")
    os.write(feed, b"two")
    os.close(feed)
    pump.join(5)
    os.close(sink)
    assert os.read(out, 100) == b"one two" == b"".join(seen)
    os.close(out)


def test_a_reader_that_went_away_does_not_block_the_writer() -> None:
    (source, feed), (out, sink) = os.pipe(), os.pipe()
    os.close(out)
    seen: list[bytes] = []
    pump = Pump(source, sink, seen.append)
    pump.start()
    write_all(feed, bytes(1 << 20))
    os.close(feed)
    pump.join(5)
    assert not pump.is_alive()
    assert sum(map(len, seen)) == 1 << 20
    os.close(sink)


def test_an_input_pump_stops_without_taking_what_comes_later() -> None:
    (source, feed), (out, sink) = os.pipe(), os.pipe()
    pump = InputPump(source, sink)
    pump.start()
    os.write(feed, b"early")
    assert os.read(out, 10) == b"early"
    pump.stop()
    os.write(feed, b"late")
    assert os.read(source, 10) == b"late"
    for descriptor in (source, feed, out, sink):
        os.close(descriptor)


def test_write_all_waits_for_a_slow_reader() -> None:
    out, sink = os.pipe2(os.O_NONBLOCK)
    got = bytearray()

    def read() -> None:
        os.set_blocking(out, True)
        while len(got) < 1 << 20:
            got.extend(os.read(out, 4096))

    reader = threading.Thread(target=read)
    reader.start()
    write_all(sink, bytes(1 << 20))
    reader.join(10)
    assert len(got) == 1 << 20
    os.close(out)
    os.close(sink)


def test_a_terminal_is_raw_inside_and_as_before_after() -> None:
    master, slave = pty.openpty()
    before = termios.tcgetattr(slave)
    with RawTerminal(slave):
        assert not termios.tcgetattr(slave)[3] & termios.ECHO
    assert termios.tcgetattr(slave) == before
    with RawTerminal(slave, keys=False):
        assert termios.tcgetattr(slave)[1] & termios.OPOST == 0
        assert termios.tcgetattr(slave)[3] == before[3]
    assert termios.tcgetattr(slave) == before
    termios.tcsetwinsize(slave, (24, 80))
    assert get_size(slave) == (24, 80)
    os.close(master)
    os.close(slave)
    reader, writer = os.pipe()
    with RawTerminal(reader):
        assert get_size(reader) == (0, 0)
    os.close(reader)
    os.close(writer)
