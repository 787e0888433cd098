"""Our classes of the snapshots service against google.protobuf's, made of snapshots.proto."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from enclave_cc.wire.pb import codec, snapshots

MOUNT = snapshots.Mount("overlay", "source", "target", ("ro", "index=off"))
INFO = snapshots.Info("n", "p", int(snapshots.Kind.COMMITTED), snapshots.Timestamp(5, 6), snapshots.Timestamp(7, 8), {"k": "v"})
MESSAGES = [
    snapshots.Empty(),
    snapshots.Timestamp.of(1_700_000_000_000_000_001),
    snapshots.FieldMask(("labels", "labels.a")),
    MOUNT,
    snapshots.PrepareSnapshotRequest("s", "k", "p", {"a": "b"}),
    snapshots.MountsResponse((MOUNT, MOUNT)),
    snapshots.SnapshotRequest("s", "k"),
    snapshots.CommitSnapshotRequest("s", "n", "k", {"a": "b"}, "p"),
    INFO,
    snapshots.InfoResponse(INFO),
    snapshots.UpdateSnapshotRequest("s", INFO, snapshots.FieldMask(("labels",))),
    snapshots.ListSnapshotsRequest("s", ("kind==view",)),
    snapshots.ListSnapshotsResponse((INFO, INFO)),
    snapshots.UsageResponse(1 << 40, 3),
    snapshots.CleanupRequest("s"),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda m: type(m).__name__)
def test_both_codecs_agree(google: Callable[[str], Any], message: Any) -> None:
    theirs = google(f"containerd.services.snapshots.v1.{type(message).__name__}")()
    theirs.ParseFromString(codec.encode(message))
    assert {field.name for field, _ in theirs.ListFields()} == {field.name for field in dataclasses.fields(message)}
    assert theirs.SerializeToString(deterministic=True) == codec.encode(message)
    assert codec.decode(type(message), theirs.SerializeToString()) == message


def test_every_message_is_looked_at() -> None:
    classes = {value for value in vars(snapshots).values() if isinstance(value, type) and dataclasses.is_dataclass(value)}
    assert classes == {type(message) for message in MESSAGES}
