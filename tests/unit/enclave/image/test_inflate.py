"""Decompression of layers: every form, every cut, every bomb."""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Iterator

import pytest
import zstandard

from enclave_cc.enclave.image.inflate import OUTPUT_SIZE, inflate
from enclave_cc.errors import PeerError

PLAIN = b"".join(b"%d," % n for n in range(60_000)) + os.urandom(5000)
LIMIT = 1 << 30


def zstd(data: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(data)


SKIPPABLE = b"\x51\x2a\x4d\x18\x05\x00\x00\x00hello"
FORMS = {
    "plain": PLAIN,
    "gzip": gzip.compress(PLAIN),
    "gzip members": gzip.compress(PLAIN[:1000]) + gzip.compress(b"") + gzip.compress(PLAIN[1000:]),
    "gzip padded": gzip.compress(PLAIN) + bytes(3000),
    "gzip padded members": gzip.compress(PLAIN[:7]) + bytes(3) + gzip.compress(PLAIN[7:]),
    "zstd": zstd(PLAIN),
    "zstd frames": zstd(PLAIN[:99_999]) + zstd(b"") + zstd(PLAIN[99_999:]),
    "zstd skippable first": SKIPPABLE + zstd(PLAIN),
    "zstd skippable": zstd(PLAIN[:5]) + SKIPPABLE + zstd(PLAIN[5:]) + SKIPPABLE,
}


def cut(data: bytes, size: int) -> Iterator[bytes]:
    return (data[at : at + size] for at in range(0, len(data), size))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("size", [1, 7, 4096, 1 << 22])
def test_every_form_in_every_cut(form: str, size: int) -> None:
    assert b"".join(inflate(cut(FORMS[form], size), limit=LIMIT)) == PLAIN


@pytest.mark.parametrize("short", [b"", b"a", b"\x1f", b"\x28\xb5"])
def test_shorter_than_any_magic(short: bytes) -> None:
    assert b"".join(inflate([short], limit=LIMIT)) == short


@pytest.mark.parametrize("form", ["gzip", "gzip members"])
def test_cut_short(form: str) -> None:
    for missing in (1, 8, 9, 100):
        with pytest.raises(PeerError) as caught:
            list(inflate([FORMS[form][:-missing]], limit=LIMIT))
        assert caught.value.code == "layer-broken"


@pytest.mark.parametrize(
    "broken",
    [
        FORMS["gzip"] + b"garbage",
        FORMS["gzip"][:-8] + b"\0\0\0\0" + FORMS["gzip"][-4:],  # CRC
        FORMS["gzip"][:-4] + b"\0\0\0\0",  # size
        b"\x1f\x8b\x07" + FORMS["gzip"][3:],  # method
        FORMS["gzip"][:2000] + b"\xff" * 50 + FORMS["gzip"][2050:],
        FORMS["zstd"] + b"garbage",
        FORMS["zstd"][:100] + b"\xff" * 300_000,
        b"\x28\xb5\x2f\xfd" + b"\xff" * 20,
    ],
)
def test_broken_streams_raise_only_layer_broken(broken: bytes) -> None:
    with pytest.raises(PeerError) as caught:
        list(inflate([broken], limit=LIMIT))
    assert caught.value.code == "layer-broken"


def test_a_zstd_stream_that_is_cut_short_ends_early() -> None:
    """zstandard's reader does not tell; the layer's diffID does (test_layer.py)."""
    assert len(b"".join(inflate([FORMS["zstd"][:-50]], limit=LIMIT))) < len(PLAIN)


@pytest.mark.parametrize("form", ["gzip", "zstd"])
def test_a_bomb_is_defused_in_small_pieces(form: str) -> None:
    zeros = bytes(1 << 26)
    bomb = zlib.compress(zeros, 9, wbits=31) if form == "gzip" else zstd(zeros)
    seen = 0
    with pytest.raises(PeerError) as caught:
        for piece in inflate([bomb], limit=1 << 22):
            assert len(piece) <= OUTPUT_SIZE
            seen += len(piece)
    assert caught.value.code == "layer-broken"
    assert seen <= 1 << 22


def test_a_greedy_zstd_window_is_refused() -> None:
    parameters = zstandard.ZstdCompressionParameters(window_log=28, enable_ldm=True)
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    greedy = compressor.compress(PLAIN) + compressor.flush()
    with pytest.raises(PeerError):
        list(inflate([greedy], limit=LIMIT))
