"""Key packets and options of encrypted layers."""

from __future__ import annotations

import contextlib

from enclave_cc.crypto.secret import Secret
from enclave_cc.errors import PeerError
from enclave_cc.wire.oci import encryption

_PRIVATE = encryption.PrivateOptions(Secret(b"k" * 32), b"n" * 16, "sha256:" + "ab" * 32)
SEEDS: list[bytes] = [
    encryption.KeyPacket("kbs:///a/b/c", b"wrapped", bytes(12)).encode(),
    encryption.KeyPacket("kbs:///a/b/c", b"wrapped", bytes(16), "A256CTR").encode(),
    encryption.PublicOptions(b"h" * 32).encode(),
    _PRIVATE.encode().reveal(),
]


def target(data: bytes) -> None:
    for parse in (encryption.KeyPacket.parse, encryption.PublicOptions.parse, encryption.PrivateOptions.parse):
        with contextlib.suppress(PeerError):
            parse(data)
