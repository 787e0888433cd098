"""gzip and zstd as streams, on the owner's side: to shrink plain layers, and to check what was published.

The check does not share code with the agent's reader: two readings of a layer that agree are worth more than one. As
there, the first bytes tell the compression, because the media types of real images are often wrong.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import cast

from enclave_cc.errors import PeerError

_GZIP = b"\x1f\x8b"
_ZSTD = b"\x28\xb5\x2f\xfd"
_LEVEL = 2  # igzip's 0-3: near zlib's 4 in size, several times as fast
_GZIP_WBITS = 31


def detect(chunks: Iterable[bytes]) -> tuple[str, Iterator[bytes]]:
    """`"gzip"`, `"zstd"` or `""`, and the stream as it was."""
    stream = iter(chunks)
    head = b""
    for chunk in stream:
        head += chunk
        if len(head) >= len(_ZSTD):
            break
    kind = "gzip" if head.startswith(_GZIP) else "zstd" if head.startswith(_ZSTD) else ""
    return kind, itertools.chain((head,), stream)


def compress_gzip(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """One gzip member without name or time, so that the same layer gives the same bytes."""
    from isal import isal_zlib

    compressor = isal_zlib.compressobj(_LEVEL, isal_zlib.DEFLATED, _GZIP_WBITS)
    for chunk in chunks:
        if piece := compressor.compress(chunk):
            yield piece
    yield compressor.flush()


def decompress(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """The plain stream. Raises `PeerError("layer-broken")`."""
    kind, stream = detect(chunks)
    if kind == "gzip":
        return _decompress_gzip(stream)
    if kind == "zstd":
        return _decompress_zstd(stream)
    return stream


def _decompress_gzip(chunks: Iterable[bytes]) -> Iterator[bytes]:
    from isal import isal_zlib

    broken = cast("type[Exception]", isal_zlib.error)  # its stub calls the class a value
    member = isal_zlib.decompressobj(_GZIP_WBITS)
    inside = True
    try:
        for chunk in chunks:
            data = chunk
            while data:
                if not inside:
                    data = data.lstrip(b"\0")  # padding behind a member, then perhaps another one
                    if not data:
                        break
                    member, inside = isal_zlib.decompressobj(_GZIP_WBITS), True
                if piece := member.decompress(data):
                    yield piece
                data = b""
                if member.eof:
                    data, inside = member.unused_data, False
    except broken as error:
        raise PeerError("layer-broken", "a layer's gzip stream is broken") from error
    if inside:
        raise PeerError("layer-broken", "a layer's gzip stream ends early")


def _decompress_zstd(chunks: Iterable[bytes]) -> Iterator[bytes]:
    import zstandard

    decompressor = zstandard.ZstdDecompressor().decompressobj(read_across_frames=True)
    try:
        for chunk in chunks:
            if piece := decompressor.decompress(chunk):
                yield piece
    except zstandard.ZstdError as error:
        raise PeerError("layer-broken", "a layer's zstd stream is broken") from error
