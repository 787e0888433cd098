"""The node cache's form of a layer's entries."""

from __future__ import annotations

import pytest

from enclave_cc.enclave.rootfs import entries
from enclave_cc.enclave.rootfs.entries import Entry, decode_entries, encode_entries
from enclave_cc.errors import PeerError

SAMPLE = [
    Entry(b"", entries.DIRECTORY, 0o755),
    Entry(b"f", entries.FILE, 0o4755, 1, 4_000_000_000, -1, 700, extents=((512, 700, 0),), dirty_padding=True),
    Entry(b"f", entries.FILE, size=1 << 40, extents=((512, 5, 0), (1024, 7, 1 << 39)), xattrs={b"user.a": b"\0", b"user.b": b""}),
    Entry(b"s", entries.SYMLINK, 0o777, link=b"target"),
    Entry(b"c", entries.CHARACTER_DEVICE, rdev=(5, 1), xattrs={b"security.x": b"y" * 300}),
]


@pytest.mark.parametrize("sample", [[], SAMPLE[:1], SAMPLE, SAMPLE * 50])
def test_what_was_encoded_comes_back(sample: list[Entry]) -> None:
    assert decode_entries(encode_entries(sample)) == sample


def test_every_truncation_is_refused() -> None:
    data = encode_entries(SAMPLE)
    for length in range(len(data)):
        with pytest.raises(PeerError) as refusal:
            decode_entries(data[:length])
        assert refusal.value.code == "malformed"
    with pytest.raises(PeerError):
        decode_entries(data + b"\0")


def test_a_count_larger_than_the_data_allocates_nothing() -> None:
    data = bytearray(encode_entries(SAMPLE))
    data[8:12] = b"\xff\xff\x1f\0"
    with pytest.raises(PeerError):
        decode_entries(bytes(data))
