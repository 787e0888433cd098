"""The messages of task.proto: containerd's task service, versions 2 and 3, which have the same messages."""

from __future__ import annotations

from enclave_cc.record import record
from enclave_cc.wire.pb import codec
from enclave_cc.wire.pb.ttrpc import Any

SERVICES = ("containerd.task.v2.Task", "containerd.task.v3.Task")

# containerd.v1.types.Status
CREATED, RUNNING, STOPPED, PAUSED = 1, 2, 3, 4


@record
class Timestamp:
    """google.protobuf.Timestamp."""

    seconds: int = codec.int64(1)
    nanos: int = codec.int32(2)

    @classmethod
    def of(cls, nanoseconds: int) -> Timestamp:
        """From nanoseconds since 1970."""
        return cls(nanoseconds // 10**9, nanoseconds % 10**9)


@record
class Empty:
    pass


@record
class Mount:
    type: str = codec.string(1)
    source: str = codec.string(2)
    target: str = codec.string(3)
    options: tuple[str, ...] = codec.string(4, repeated=True)


@record
class CreateTaskRequest:
    id: str = codec.string(1)
    bundle: str = codec.string(2)
    rootfs: tuple[Mount, ...] = codec.message(3, Mount, repeated=True)
    terminal: bool = codec.boolean(4)
    stdin: str = codec.string(5)
    stdout: str = codec.string(6)
    stderr: str = codec.string(7)
    checkpoint: str = codec.string(8)
    parent_checkpoint: str = codec.string(9)
    options: Any | None = codec.message(10, Any)


@record
class PidResponse:
    """CreateTaskResponse and StartResponse."""

    pid: int = codec.uint32(1)


@record
class ProcessRequest:
    """StartRequest, DeleteRequest, StateRequest, WaitRequest; without an exec id the task itself."""

    id: str = codec.string(1)
    exec_id: str = codec.string(2)


@record
class TaskRequest:
    """PidsRequest, PauseRequest, ResumeRequest, StatsRequest, ConnectRequest, CheckpointTaskRequest."""

    id: str = codec.string(1)


@record
class DeleteResponse:
    pid: int = codec.uint32(1)
    exit_status: int = codec.uint32(2)
    exited_at: Timestamp | None = codec.message(3, Timestamp)


@record
class ExecProcessRequest:
    """`spec`: the OCI process as JSON."""

    id: str = codec.string(1)
    exec_id: str = codec.string(2)
    terminal: bool = codec.boolean(3)
    stdin: str = codec.string(4)
    stdout: str = codec.string(5)
    stderr: str = codec.string(6)
    spec: Any | None = codec.message(7, Any)


@record
class ResizePtyRequest:
    id: str = codec.string(1)
    exec_id: str = codec.string(2)
    width: int = codec.uint32(3)
    height: int = codec.uint32(4)


@record
class StateResponse:
    id: str = codec.string(1)
    bundle: str = codec.string(2)
    pid: int = codec.uint32(3)
    status: int = codec.int32(4)
    stdin: str = codec.string(5)
    stdout: str = codec.string(6)
    stderr: str = codec.string(7)
    terminal: bool = codec.boolean(8)
    exit_status: int = codec.uint32(9)
    exited_at: Timestamp | None = codec.message(10, Timestamp)
    exec_id: str = codec.string(11)


@record
class KillRequest:
    id: str = codec.string(1)
    exec_id: str = codec.string(2)
    signal: int = codec.uint32(3)
    all: bool = codec.boolean(4)


@record
class CloseIORequest:
    id: str = codec.string(1)
    exec_id: str = codec.string(2)
    stdin: bool = codec.boolean(3)


@record
class ProcessDetails:
    """containerd.runc.v1.ProcessDetails."""

    exec_id: str = codec.string(1)


PROCESS_DETAILS_URL = "containerd.runc.v1.ProcessDetails"


@record
class ProcessInfo:
    pid: int = codec.uint32(1)
    info: Any | None = codec.message(2, Any)


@record
class PidsResponse:
    processes: tuple[ProcessInfo, ...] = codec.message(1, ProcessInfo, repeated=True)


@record
class UpdateTaskRequest:
    """`resources`: OCI linux.resources as JSON."""

    id: str = codec.string(1)
    resources: Any | None = codec.message(2, Any)
    annotations: dict[str, str] = codec.string_map(3)


@record
class WaitResponse:
    exit_status: int = codec.uint32(1)
    exited_at: Timestamp | None = codec.message(2, Timestamp)


@record
class StatsResponse:
    stats: Any | None = codec.message(1, Any)


@record
class ConnectResponse:
    shim_pid: int = codec.uint32(1)
    task_pid: int = codec.uint32(2)
    version: str = codec.string(3)


@record
class ShutdownRequest:
    id: str = codec.string(1)
    now: bool = codec.boolean(2)


@record
class RuncOptions:
    """containerd.runc.v1.Options, of which one member concerns us."""

    systemd_cgroup: bool = codec.boolean(9)
