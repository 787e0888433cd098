"""containerd's filter language, as a client of the snapshotter may send it."""

from __future__ import annotations

import contextlib

from enclave_cc.errors import UsageError
from enclave_cc.host.snapshotter import filters

SEEDS: list[bytes] = [
    b'labels."containerd.io/snapshot.ref"==sha256:ab,parent=="k8s.io/3/x"',
    b"kind==active,name~=/c[0-9]+/",
    b'labels.a.b!="x\\x20\\u0079\\171"',
]


def target(data: bytes) -> None:
    with contextlib.suppress(UsageError):
        filters.parse_all([data.decode("utf-8", "replace")])
