"""The messages of shim_events.proto: what a shim tells containerd of its tasks, and the call that carries it."""

from __future__ import annotations

from enclave_cc.record import record
from enclave_cc.wire.pb import codec
from enclave_cc.wire.pb.task import Mount, Timestamp
from enclave_cc.wire.pb.ttrpc import Any

SERVICE = "containerd.services.events.ttrpc.v1.Events"
METHOD = "Forward"


@record
class TaskIO:
    stdin: str = codec.string(1)
    stdout: str = codec.string(2)
    stderr: str = codec.string(3)
    terminal: bool = codec.boolean(4)


@record
class TaskCreate:
    container_id: str = codec.string(1)
    bundle: str = codec.string(2)
    rootfs: tuple[Mount, ...] = codec.message(3, Mount, repeated=True)
    io: TaskIO | None = codec.message(4, TaskIO)
    checkpoint: str = codec.string(5)
    pid: int = codec.uint32(6)


@record
class TaskStart:
    container_id: str = codec.string(1)
    pid: int = codec.uint32(2)


@record
class TaskDelete:
    container_id: str = codec.string(1)
    pid: int = codec.uint32(2)
    exit_status: int = codec.uint32(3)
    exited_at: Timestamp | None = codec.message(4, Timestamp)
    id: str = codec.string(5)


@record
class TaskExit:
    """`id`: the exec's, or the container's own."""

    container_id: str = codec.string(1)
    id: str = codec.string(2)
    pid: int = codec.uint32(3)
    exit_status: int = codec.uint32(4)
    exited_at: Timestamp | None = codec.message(5, Timestamp)


@record
class TaskOOM:
    container_id: str = codec.string(1)


@record
class TaskExecAdded:
    container_id: str = codec.string(1)
    exec_id: str = codec.string(2)


@record
class TaskExecStarted:
    container_id: str = codec.string(1)
    exec_id: str = codec.string(2)
    pid: int = codec.uint32(3)


@record
class TaskPaused:
    container_id: str = codec.string(1)


@record
class TaskResumed:
    container_id: str = codec.string(1)


Event = TaskCreate | TaskStart | TaskDelete | TaskExit | TaskOOM | TaskExecAdded | TaskExecStarted | TaskPaused | TaskResumed

TOPICS: dict[type, str] = {
    TaskCreate: "/tasks/create",
    TaskStart: "/tasks/start",
    TaskDelete: "/tasks/delete",
    TaskExit: "/tasks/exit",
    TaskOOM: "/tasks/oom",
    TaskExecAdded: "/tasks/exec-added",
    TaskExecStarted: "/tasks/exec-started",
    TaskPaused: "/tasks/paused",
    TaskResumed: "/tasks/resumed",
}


@record
class Envelope:
    timestamp: Timestamp | None = codec.message(1, Timestamp)
    namespace: str = codec.string(2)
    topic: str = codec.string(3)
    event: Any | None = codec.message(4, Any)


@record
class ForwardRequest:
    envelope: Envelope | None = codec.message(1, Envelope)


def wrap(event: Event, namespace: str, now: int) -> bytes:
    """The ForwardRequest of one event; `now` in nanoseconds since 1970."""
    kind = type(event)
    content = Any(f"containerd.events.{kind.__name__}", codec.encode(event))
    return codec.encode(ForwardRequest(Envelope(Timestamp.of(now), namespace, TOPICS[kind], content)))
