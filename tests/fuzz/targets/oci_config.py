"""Image configurations."""

from __future__ import annotations

import contextlib

from enclave_cc.errors import PeerError
from enclave_cc.wire.oci.config import ImageConfig

SEEDS: list[bytes] = [
    b'{"os":"linux","architecture":"amd64","config":{"Env":["A=b"],"Cmd":["/x"],"User":"u:g","WorkingDir":"/w","Volumes":{"/v":{}}},'
    b'"rootfs":{"type":"layers","diff_ids":["sha256:' + b"ab" * 32 + b'"]}}',
]


def target(data: bytes) -> None:
    with contextlib.suppress(PeerError):
        ImageConfig.parse(data)
