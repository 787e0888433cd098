"""Manifests and indexes."""

from __future__ import annotations

import contextlib

from enclave_cc.errors import PeerError
from enclave_cc.wire.oci.manifest import parse_manifest

_D = b'{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","digest":"sha256:' + b"ab" * 32 + b'","size":7}'
SEEDS: list[bytes] = [
    b'{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":' + _D + b',"layers":[' + _D + b"]}",
    b'{"schemaVersion":2,"manifests":[' + _D[:-1] + b',"platform":{"os":"linux","architecture":"amd64"},"annotations":{"a":"b"}}]}',
]


def target(data: bytes) -> None:
    with contextlib.suppress(PeerError):
        parse_manifest(data)
