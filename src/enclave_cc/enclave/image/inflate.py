"""Decompresses a layer as a stream, with bounded memory whatever the input is.

The compression is told by the first bytes, as containerd and umoci do it: media types of real images are often wrong,
and diffID decides what is right. gzip (RFC 1952) of many members, zero padding behind them, zstd (RFC 8878) of many frames and
skippable frames, or none.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import IO, cast

from enclave_cc.errors import PeerError

OUTPUT_SIZE = 256 * 1024  # measured: larger outputs are slower, their memory comes fresh from the kernel each time
# zstd's own limit for streams without --long; larger windows are the sender's wish to use our memory.
ZSTD_MAX_WINDOW = 1 << 27
_GZIP = b"\x1f\x8b"
_ZSTD = b"\x28\xb5\x2f\xfd"


def inflate(chunks: Iterable[bytes], *, limit: int) -> Iterator[bytes]:
    """Yields the plain stream in pieces of at most max(256 KiB, the chunk). Raises `PeerError("layer-broken")`.

    `limit`: plain bytes after which it gives up.
    """
    source = iter(chunks)
    head = b""
    for chunk in source:
        head += chunk
        if len(head) >= len(_ZSTD):
            break
    if head.startswith(_GZIP):
        plain = _inflate_gzip(head, source)
    elif head.startswith(_ZSTD) or (head[1:4] == b"\x2a\x4d\x18" and head[0] & 0xF0 == 0x50):
        plain = _inflate_zstd(head, source)
    else:
        plain = _pass(head, source)
    total = 0
    for piece in plain:
        total += len(piece)
        if total > limit:
            raise PeerError("layer-broken", f"the layer unpacks to more than {limit} bytes")
        yield piece


def _pass(head: bytes, source: Iterator[bytes]) -> Iterator[bytes]:
    if head:
        yield head
    yield from source


def _inflate_gzip(head: bytes, source: Iterator[bytes]) -> Iterator[bytes]:
    from isal import igzip_lib

    isal_error = cast(type[Exception], igzip_lib.IsalError)  # its stub declares an instance

    member = igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP)
    feed: bytes | None = head
    while True:
        if member.eof:
            rest: bytes = member.unused_data
            while not (rest := rest.lstrip(b"\0")):  # padding of tapes; Python and gzip(1) let it pass
                following = next(source, None)
                if following is None:
                    return
                rest = following
            member = igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP)
            feed = rest
        if feed is None:
            feed = next(source, None) if member.needs_input else b""
            if feed is None:
                raise PeerError("layer-broken", "the layer's gzip stream is cut short")
        try:
            piece: bytes = member.decompress(feed, OUTPUT_SIZE)
        except (isal_error, EOFError, ValueError) as error:
            raise PeerError("layer-broken", "the layer's gzip stream is broken") from error
        feed = None
        if piece:
            yield piece


class _Source:
    """What zstandard's reader reads from. Each read gives the next chunk, whatever size was asked."""

    def __init__(self, head: bytes, source: Iterator[bytes]) -> None:
        self._head: bytes | None = head
        self._source = source

    def read(self, _size: int) -> bytes:
        if self._head is not None:
            head, self._head = self._head, None
            return head
        for chunk in self._source:
            if chunk:
                return chunk
        return b""


def _inflate_zstd(head: bytes, source: Iterator[bytes]) -> Iterator[bytes]:
    import zstandard

    decompressor = zstandard.ZstdDecompressor(max_window_size=ZSTD_MAX_WINDOW)
    with decompressor.stream_reader(cast(IO[bytes], _Source(head, source)), read_across_frames=True) as reader:
        while True:
            try:
                piece: bytes = reader.read(OUTPUT_SIZE)
            except zstandard.ZstdError as error:
                raise PeerError("layer-broken", "the layer's zstd stream is broken") from error
            if not piece:
                return  # a stream that is cut short ends here too: diffID tells
            yield piece
