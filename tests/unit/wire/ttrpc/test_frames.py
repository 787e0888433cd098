"""Frames: whole, byte by byte, with bytes behind, oversize, not ttrpc."""

from __future__ import annotations

import pytest

from enclave_cc.errors import PeerError, UsageError
from enclave_cc.wire.ttrpc import frames
from enclave_cc.wire.ttrpc.frames import Frame, FrameReader, Oversize

SOME = [Frame(1, frames.REQUEST, 0, b"hello"), Frame(3, frames.DATA, 5, b""), Frame(0xFFFFFFFF, 77, 255, bytes(300))]


def test_the_header_is_as_containerd_writes_it() -> None:
    # PROTOCOL.md: length (4), stream id (4), type, flags; big-endian.
    assert frames.encode(Frame(0x01020304, 2, 4, b"abc")) == b"\0\0\0\3" + b"\1\2\3\4" + b"\2" + b"\4" + b"abc"


def test_frames_come_back_whole_and_byte_by_byte() -> None:
    data = b"".join(frames.encode(frame) for frame in SOME)
    assert list(FrameReader().feed(data)) == SOME
    reader = FrameReader()
    assert [frame for at in range(len(data)) for frame in reader.feed(data[at : at + 1])] == SOME
    assert not reader.in_frame
    assert list(reader.feed(data[:5])) == []
    assert reader.in_frame


def test_the_largest_frame_is_taken_and_one_byte_more_is_not_sent() -> None:
    largest = Frame(1, 1, 0, bytes(frames.MAX_DATA_SIZE))
    assert list(FrameReader().feed(frames.encode(largest))) == [largest]
    with pytest.raises(UsageError) as caught:
        frames.encode(Frame(1, 1, 0, bytes(frames.MAX_DATA_SIZE + 1)))
    assert caught.value.code == "too-large"


def test_an_oversize_frame_is_dropped_without_keeping_it() -> None:
    size = frames.MAX_DATA_SIZE + 5
    header = size.to_bytes(4, "big") + b"\0\0\0\7" + b"\1\0"
    reader = FrameReader()
    assert list(reader.feed(header)) == []
    left = size
    while left:
        part = min(left, 1 << 16)
        found = list(reader.feed(bytes(part)))
        left -= part
        assert found == ([] if left else [Oversize(7, 1, size)])
        assert len(reader._buffer) == 0
    assert list(reader.feed(frames.encode(SOME[0]))) == SOME[:1]


def test_a_set_first_byte_is_no_ttrpc() -> None:
    with pytest.raises(PeerError) as caught:
        list(FrameReader().feed(b"\1\0\0\0" + bytes(6)))
    assert caught.value.code == "malformed"
