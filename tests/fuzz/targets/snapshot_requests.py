"""Requests to the snapshotter."""

from __future__ import annotations

import contextlib

from enclave_cc.errors import PeerError
from enclave_cc.wire.pb import codec, snapshots

REQUESTS = (
    snapshots.PrepareSnapshotRequest,
    snapshots.CommitSnapshotRequest,
    snapshots.UpdateSnapshotRequest,
    snapshots.ListSnapshotsRequest,
)
SEEDS: list[bytes] = [
    codec.encode(snapshots.PrepareSnapshotRequest("s", "k", "p", {"a": "b"})),
    codec.encode(snapshots.UpdateSnapshotRequest("s", snapshots.Info("n", labels={"a": "b"}), snapshots.FieldMask(("labels",)))),
]


def target(data: bytes) -> None:
    for request in REQUESTS:
        with contextlib.suppress(PeerError):
            codec.decode(request, data)
