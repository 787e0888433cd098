"""Decompression of layers."""

from __future__ import annotations

import gzip

import zstandard

from enclave_cc.enclave.image.inflate import inflate
from enclave_cc.errors import PeerError

_PLAIN = b"some content, some content, some more content" * 20
SEEDS = [gzip.compress(_PLAIN), gzip.compress(b"") * 3 + bytes(9), zstandard.ZstdCompressor().compress(_PLAIN), _PLAIN]


def target(data: bytes) -> None:
    try:
        for _ in inflate([data[at : at + 64] for at in range(0, len(data), 64)], limit=1 << 22):
            pass
    except PeerError:
        pass
