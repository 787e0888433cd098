"""Descriptors and blocks of sealed blobs."""

from __future__ import annotations

import contextlib
import json

from enclave_cc.crypto.secret import Secret
from enclave_cc.errors import PeerError
from enclave_cc.wire.sealed.block import Role
from enclave_cc.wire.sealed.descriptor import BlobDescriptor
from enclave_cc.wire.sealed.reader import open_block
from enclave_cc.wire.sealed.rootfs import RootfsDescriptor

_METADATA = BlobDescriptor(b"m" * 16, Secret(b"k" * 32), Role.METADATA, 131072, 1000)
_LAYER = BlobDescriptor(b"l" * 16, Secret(b"k" * 32), Role.LAYER, 4096, 5000)
SEEDS = [
    json.dumps(_LAYER.to_json()).encode(),
    json.dumps(RootfsDescriptor(_METADATA, (_LAYER,)).to_json()).encode(),
    b"\0" + bytes(4112),
]


def target(data: bytes) -> None:
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        document = None
    for parse in (BlobDescriptor.from_json, RootfsDescriptor.from_json):
        with contextlib.suppress(PeerError):
            parse(document)
    with contextlib.suppress(PeerError):
        open_block(_LAYER, data[0] if data else 0, data[1:])
