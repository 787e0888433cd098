"""containerd's task service, versions 2 and 3 (one set of messages): decode, ask the sandbox, encode."""

from __future__ import annotations

import json
import os
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

from enclave_cc.errors import PeerError, UsageError, foreign
from enclave_cc.host.shim import states
from enclave_cc.host.shim.containers import Asked
from enclave_cc.host.shim.processes import Process
from enclave_cc.host.shim.sandbox import Sandbox
from enclave_cc.host.shim.stdio import Names
from enclave_cc.transport.ttrpc_server import Handler, Services
from enclave_cc.wire.pb import codec, shim_events, task
from enclave_cc.wire.pb.ttrpc import Any as Packed

_RUNC_OPTIONS = "containerd.runc.v1.Options"
_SPEC_LIMIT = 16 << 20


class TaskService:
    """One handler per method, each in the thread of its call. `stopping` is set once the shim may end."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox
        self.stopping = threading.Event()

    def services(self) -> Services:
        methods: dict[str, Handler] = {
            "State": self.state,
            "Create": self.create,
            "Start": self.start,
            "Delete": self.delete,
            "Pids": self.pids,
            "Pause": self.pause,
            "Resume": self.resume,
            "Checkpoint": self.checkpoint,
            "Kill": self.kill,
            "Exec": self.exec,
            "ResizePty": self.resize,
            "CloseIO": self.close_io,
            "Update": self.update,
            "Wait": self.wait,
            "Stats": self.stats,
            "Connect": self.connect,
            "Shutdown": self.shutdown,
        }
        return dict.fromkeys(task.SERVICES, methods)

    def create(self, data: bytes) -> bytes:
        request = codec.decode(task.CreateTaskRequest, data)
        if request.checkpoint:
            raise UsageError("unsupported", "an enclave cannot be restored from a checkpoint")
        names = Names(request.stdin, request.stdout, request.stderr, request.terminal)
        bundle = Path(request.bundle)
        asked = Asked(request.id, bundle, names, request.rootfs, read_spec(bundle))
        container = self._sandbox.create(asked, systemd=_wants_systemd(request.options))
        streams = shim_events.TaskIO(names.stdin, names.stdout, names.stderr, names.terminal)
        container.publish(shim_events.TaskCreate(request.id, request.bundle, request.rootfs, streams, "", container.pid))
        return codec.encode(task.PidResponse(container.pid))

    def start(self, data: bytes) -> bytes:
        request = codec.decode(task.ProcessRequest, data)
        container = self._sandbox.find(request.id)
        process = container.find(request.exec_id)
        if process is container:
            container.start()
        else:
            container.start_exec(process)
        return codec.encode(task.PidResponse(process.pid))

    def delete(self, data: bytes) -> bytes:
        request = codec.decode(task.ProcessRequest, data)
        process: Process
        if request.exec_id:
            process = self._sandbox.find(request.id).delete_exec(request.exec_id)
        else:
            process = self._sandbox.delete(request.id)
        status, at = (process.exit.status, process.exit.at) if process.exit else (0, 0)
        stamp = task.Timestamp.of(at)
        if not request.exec_id:
            self._sandbox.publisher.publish(shim_events.TaskDelete(request.id, process.pid, status, stamp))
        return codec.encode(task.DeleteResponse(process.pid, status, stamp))

    def state(self, data: bytes) -> bytes:
        request = codec.decode(task.ProcessRequest, data)
        container = self._sandbox.find(request.id)
        process = container.find(request.exec_id)
        names, ended = process.names, process.exit if process.state is states.State.STOPPED else None
        return codec.encode(
            task.StateResponse(
                id=process.id,
                bundle=str(container.asked.bundle),
                pid=process.pid,
                status=states.STATUS[process.state],
                stdin=names.stdin,
                stdout=names.stdout,
                stderr=names.stderr,
                terminal=names.terminal,
                exit_status=ended.status if ended else 0,
                exited_at=task.Timestamp.of(ended.at if ended else 0),
                exec_id=request.exec_id,
            )
        )

    def kill(self, data: bytes) -> bytes:
        request = codec.decode(task.KillRequest, data)
        if not 1 <= request.signal <= 64:
            raise UsageError("usage", f"{request.signal} is no signal")
        self._sandbox.find(request.id).find(request.exec_id).kill(request.signal)
        return b""

    def exec(self, data: bytes) -> bytes:
        request = codec.decode(task.ExecProcessRequest, data)
        names = Names(request.stdin, request.stdout, request.stderr, request.terminal)
        process = _parse_json(request.spec.value if request.spec else b"", "the exec's specification")
        self._sandbox.find(request.id).add_exec(request.exec_id, names, process)
        return b""

    def resize(self, data: bytes) -> bytes:
        request = codec.decode(task.ResizePtyRequest, data)
        process = self._sandbox.find(request.id).find(request.exec_id)
        process.resize(min(request.height, 65535), min(request.width, 65535))
        return b""

    def close_io(self, data: bytes) -> bytes:
        request = codec.decode(task.CloseIORequest, data)
        if request.stdin:
            self._sandbox.find(request.id).find(request.exec_id).close_input()
        return b""

    def pids(self, data: bytes) -> bytes:
        request = codec.decode(task.TaskRequest, data)
        listed = []
        for pid, exec_id in self._sandbox.find(request.id).list_pids().items():
            details = codec.encode(task.ProcessDetails(exec_id))
            listed.append(task.ProcessInfo(pid, Packed(task.PROCESS_DETAILS_URL, details) if exec_id else None))
        return codec.encode(task.PidsResponse(tuple(listed)))

    def pause(self, data: bytes) -> bytes:
        self._sandbox.find(codec.decode(task.TaskRequest, data).id).pause()
        return b""

    def resume(self, data: bytes) -> bytes:
        self._sandbox.find(codec.decode(task.TaskRequest, data).id).resume()
        return b""

    def checkpoint(self, data: bytes) -> bytes:
        self._sandbox.find(codec.decode(task.TaskRequest, data).id)
        raise UsageError("unsupported", "an enclave's memory cannot be written to a checkpoint")

    def update(self, data: bytes) -> bytes:
        request = codec.decode(task.UpdateTaskRequest, data)
        if request.resources is not None:
            self._sandbox.find(request.id).update(request.resources.value)
        return b""

    def wait(self, data: bytes) -> bytes:
        request = codec.decode(task.ProcessRequest, data)
        ended = self._sandbox.find(request.id).find(request.exec_id).wait()
        return codec.encode(task.WaitResponse(ended.status, task.Timestamp.of(ended.at)))

    def stats(self, data: bytes) -> bytes:
        from enclave_cc.host.shim import stats

        container = self._sandbox.find(codec.decode(task.TaskRequest, data).id)
        url, content = stats.measure(self._sandbox.group_of(container))
        return codec.encode(task.StatsResponse(Packed(url, content)))

    def connect(self, data: bytes) -> bytes:
        """A shim in which nothing was ever made says so: the containerd that started it has died, and the next one, which
        asks here whether there is a task, then calls `delete`. With anything in it, an id that is not there yet is well
        (containerd 2 asks before it creates a pod's further containers).
        """
        request = codec.decode(task.TaskRequest, data)
        pid = 0
        if self._sandbox.is_empty():
            self._sandbox.find(request.id)
        with suppress(UsageError):
            pid = self._sandbox.find(request.id).pid
        return codec.encode(task.ConnectResponse(os.getpid(), pid, ""))

    def shutdown(self, data: bytes) -> bytes:
        request = codec.decode(task.ShutdownRequest, data)
        if request.now or self._sandbox.is_empty():
            self.stopping.set()
        return b""


def read_spec(bundle: Path) -> dict[str, Any]:
    """The bundle's OCI specification. Raises `PeerError("malformed")`, `UsageError("not-found")`."""
    try:
        with (bundle / "config.json").open("rb") as file:
            spec = _parse_json(file.read(_SPEC_LIMIT), "the specification")
    except OSError as error:
        raise UsageError("not-found", f"{bundle} holds no specification: {error.strerror}") from error
    if not isinstance(spec.get("linux"), dict) or not isinstance(spec.get("process"), dict):
        raise PeerError("malformed", "the specification is not one of a Linux container")
    return spec


def _parse_json(data: bytes, what: str) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise PeerError("malformed", f"{what} is not JSON: {foreign(error)}") from error
    if not isinstance(value, dict):
        raise PeerError("malformed", f"{what} is not an object")
    return value


def _wants_systemd(options: Packed | None) -> bool:
    if options is None or options.type_url.rpartition("/")[2] != _RUNC_OPTIONS:
        return False
    return codec.decode(task.RuncOptions, options.value).systemd_cgroup
