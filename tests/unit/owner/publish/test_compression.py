"""Streams as other programs make them, cut anywhere."""

from __future__ import annotations

import gzip
import subprocess
from collections.abc import Iterator

import pytest
import zstandard

from enclave_cc.errors import PeerError
from enclave_cc.owner.publish import compression

PLAIN = b"".join(b"%d: some text that compresses\n" % number for number in range(20_000))


def pieces(data: bytes, size: int) -> Iterator[bytes]:
    return (data[at : at + size] for at in range(0, len(data), size))


def decompress(data: bytes, size: int = 1000) -> bytes:
    return b"".join(compression.decompress(pieces(data, size)))


@pytest.mark.parametrize("size", [1, 3, 17, 4096, 1 << 20])
def test_reads_what_gzip_and_zstd_make(size: int) -> None:
    plain = PLAIN[:3000] if size < 100 else PLAIN
    half = len(plain) // 2
    members = gzip.compress(plain[:half]) + gzip.compress(b"") + gzip.compress(plain[half:])
    frames = zstandard.compress(plain[:half]) + zstandard.compress(plain[half:])
    for data in (gzip.compress(plain), members, members + bytes(1000), zstandard.compress(plain), frames, plain):
        assert decompress(data, size) == plain


def test_tells_the_kind_and_loses_nothing() -> None:
    for kind, data in (("gzip", gzip.compress(PLAIN)), ("zstd", zstandard.compress(PLAIN)), ("", PLAIN), ("", b""), ("", b"\x1f")):
        found, stream = compression.detect(pieces(data, 1))
        assert (found, b"".join(stream)) == (kind, data)


def test_gzip_reads_what_is_compressed_here_and_it_is_always_the_same() -> None:
    once, twice = (b"".join(compression.compress_gzip(pieces(PLAIN, 1 << 16))) for _ in range(2))
    assert once == twice
    assert subprocess.run(["gzip", "-dc"], input=once, capture_output=True, check=True).stdout == PLAIN
    assert len(once) < len(PLAIN) / 2


BROKEN = [
    gzip.compress(PLAIN)[:-20],
    gzip.compress(PLAIN)[:100] + b"junk" * 99,
    zstandard.compress(PLAIN)[:9] + b"\xff" * 99,
]


@pytest.mark.parametrize("data", BROKEN)
def test_broken_streams_are_refused(data: bytes) -> None:
    with pytest.raises(PeerError) as caught:
        decompress(data)
    assert caught.value.code == "layer-broken"
