"""The messages of snapshots.proto: what containerd asks of a snapshotter. Every request is host-authored."""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum

from enclave_cc.record import record
from enclave_cc.wire.pb import codec

SERVICE = "containerd.services.snapshots.v1.Snapshots"


class Kind(IntEnum):
    """What a snapshot is: VIEW is mounted read-only, ACTIVE is being written, COMMITTED can be a parent."""

    UNKNOWN = 0
    VIEW = 1
    ACTIVE = 2
    COMMITTED = 3


@record
class Empty:
    pass


@record
class Timestamp:
    """Since the Unix epoch."""

    seconds: int = codec.int64(1)
    nanos: int = codec.int32(2)

    @classmethod
    def of(cls, nanoseconds: int) -> Timestamp:
        return cls(*divmod(nanoseconds, 1_000_000_000))


@record
class FieldMask:
    paths: tuple[str, ...] = codec.string(1, repeated=True)


@record
class Mount:
    """For mount(2), as containerd's mount package reads it: `type` bind or overlay here."""

    type: str = codec.string(1)
    source: str = codec.string(2)
    target: str = codec.string(3)
    options: tuple[str, ...] = codec.string(4, repeated=True)


@record
class PrepareSnapshotRequest:
    """Prepare and View."""

    snapshotter: str = codec.string(1)
    key: str = codec.string(2)
    parent: str = codec.string(3)
    labels: Mapping[str, str] = codec.string_map(4)


@record
class MountsResponse:
    """Answers Prepare, View and Mounts."""

    mounts: tuple[Mount, ...] = codec.message(1, Mount, repeated=True)


@record
class SnapshotRequest:
    """Mounts, Remove, Stat and Usage."""

    snapshotter: str = codec.string(1)
    key: str = codec.string(2)


@record
class CommitSnapshotRequest:
    snapshotter: str = codec.string(1)
    name: str = codec.string(2)
    key: str = codec.string(3)
    labels: Mapping[str, str] = codec.string_map(4)
    parent: str = codec.string(5)


@record
class Info:
    """`kind`: a `Kind`, or a number that this project does not know."""

    name: str = codec.string(1)
    parent: str = codec.string(2)
    kind: int = codec.int32(3)
    created_at: Timestamp | None = codec.message(4, Timestamp)
    updated_at: Timestamp | None = codec.message(5, Timestamp)
    labels: Mapping[str, str] = codec.string_map(6)


@record
class InfoResponse:
    """Answers Stat and Update."""

    info: Info | None = codec.message(1, Info)


@record
class UpdateSnapshotRequest:
    """`update_mask`: `labels` or `labels.NAME`; none means all that can change."""

    snapshotter: str = codec.string(1)
    info: Info | None = codec.message(2, Info)
    update_mask: FieldMask | None = codec.message(3, FieldMask)


@record
class ListSnapshotsRequest:
    """`filters`: containerd's filter language; a snapshot is listed when any of them matches, or when there is none."""

    snapshotter: str = codec.string(1)
    filters: tuple[str, ...] = codec.string(2, repeated=True)


@record
class ListSnapshotsResponse:
    info: tuple[Info, ...] = codec.message(1, Info, repeated=True)


@record
class UsageResponse:
    """`size`: bytes on disk."""

    size: int = codec.int64(1)
    inodes: int = codec.int64(2)


@record
class CleanupRequest:
    snapshotter: str = codec.string(1)
