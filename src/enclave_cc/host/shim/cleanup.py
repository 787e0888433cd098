"""`delete`: containerd's clean-up after a shim that is dead, or does not answer.

A pod has one shim, so the pod goes whole, whichever of its containers containerd names first; for the others nothing is
left to do. containerd calls it too when a container of a living shim was deleted in good order (its connection ended):
then the others of the pod run on.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path

from enclave_cc.errors import EnvironmentFault, PeerError
from enclave_cc.host.sandbox import configuration as configurations
from enclave_cc.host.sandbox import directories, takedown
from enclave_cc.host.sandbox.configuration import Configuration
from enclave_cc.host.sandbox.directories import Directories, PodLock
from enclave_cc.host.sandbox.reconcile import take_down_dead
from enclave_cc.host.sandbox.runc import Runc
from enclave_cc.host.shim import bootstrap
from enclave_cc.host.shim.arguments import Arguments
from enclave_cc.host.shim.sandbox import pod_id, runc_id
from enclave_cc.wire.pb import codec, task

KILLED = 137
_SIGKILL = 9
_INTERVAL = 0.01
_STARTING = 10.0  # between a socket's making and its listening, with much to spare
_GRACE = 1.0  # for a shim that is ending by itself


def delete(arguments: Arguments) -> bytes:
    """Removes what is left of a container and its pod; the encoded DeleteResponse. Raises coded errors."""
    configuration = configurations.load()
    remove_dead_sockets()
    try:
        group = bootstrap.read_group(arguments.id)
    except (OSError, ValueError):
        group = arguments.id
    if arguments.id != group and _is_left_to_shim(arguments, group, deadline=configuration.deadlines.remove):
        return codec.encode(task.DeleteResponse(0, KILLED, task.Timestamp.of(time.time_ns())))
    _shut_down(arguments, group)
    identifier = pod_id(arguments.namespace, group)
    take_down(configuration, identifier)
    runc = Runc(configuration.runc, Directories.of(configuration).runc, deadline=configuration.deadlines.runc)
    runc.delete(runc_id(arguments.namespace, arguments.id))
    takedown.remove_mounts(Path(arguments.bundle or os.getcwd()) / "rootfs")  # noqa: PTH109
    with suppress(OSError):
        os.unlink(bootstrap.socket_path(arguments, group))  # noqa: PTH108
    return codec.encode(task.DeleteResponse(0, KILLED, task.Timestamp.of(time.time_ns())))


def _is_left_to_shim(arguments: Arguments, group: str, *, deadline: float) -> bool:
    """Whether the pod's shim answers and has removed the container, if it still had it."""
    from enclave_cc.transport.ttrpc import Client

    requests: tuple[tuple[str, object], ...] = (
        ("Kill", task.KillRequest(arguments.id, "", _SIGKILL, True)),
        ("Delete", task.ProcessRequest(arguments.id)),
    )
    with Client(bootstrap.socket_path(arguments, group), deadline=deadline) as client:
        for method, request in requests:
            try:
                client.call(task.SERVICES[0], method, codec.encode(request))
            except EnvironmentFault:
                return False
            except PeerError as error:
                if error.code == "deadline":
                    return False
    return True


def _shut_down(arguments: Arguments, group: str) -> None:
    """Ends the pod's shim if there is one that answers: one in which nothing was made yet is in no pod's journal."""
    from enclave_cc.transport.ttrpc import Client

    request = codec.encode(task.ShutdownRequest(arguments.id, True))
    with suppress(PeerError, EnvironmentFault), Client(bootstrap.socket_path(arguments, group), deadline=_GRACE) as client:
        client.call(task.SERVICES[0], "Shutdown", request)


def remove_dead_sockets(directory: str = bootstrap.SOCKETS) -> None:
    """Takes away sockets of shims that were killed while they started: nobody listens there, and nobody else knows of them."""
    listening = {line.rsplit(" ", 1)[-1] for line in Path("/proc/net/unix").read_text().splitlines()}
    for path in Path(directory).glob(f"*{bootstrap.SUFFIX}"):
        with suppress(OSError):
            if str(path) not in listening and time.time() - path.stat().st_mtime > _STARTING:
                path.unlink()


def take_down(configuration: Configuration, identifier: str) -> None:
    """Takes down a pod, whose supervisor is killed if it lives. Raises `EnvironmentFault`."""
    places = Directories.of(configuration)
    if not (places.pods / identifier).exists():
        return
    begun = time.monotonic()
    while True:
        lock = PodLock.try_take(places.locks / identifier)
        if lock is not None:
            break
        waited = time.monotonic() - begun
        if waited > configuration.deadlines.remove:
            raise EnvironmentFault("deadline", f"the supervisor of pod {identifier} does not end")
        supervisor = directories.read_json(places.pods / identifier / "pod.json").get("supervisor")
        if waited > _GRACE and isinstance(supervisor, int) and supervisor > 1 and _is_shim(supervisor):
            with suppress(ProcessLookupError):
                os.kill(supervisor, 9)
        time.sleep(_INTERVAL)
    gone = False
    try:
        if (places.pods / identifier).exists():  # else somebody else was quicker
            take_down_dead(configuration, identifier)
        gone = True
    finally:
        lock.release(remove=gone)


def _is_shim(pid: int) -> bool:
    with suppress(OSError):
        return b"shim" in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False
