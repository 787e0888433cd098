"""containerd's task requests, and the specification that comes with them."""

from __future__ import annotations

import json

from enclave_cc.errors import EnclaveCcError, PeerError
from enclave_cc.host.shim import workload
from enclave_cc.wire.pb import codec, task

_REQUESTS = (
    task.CreateTaskRequest,
    task.ExecProcessRequest,
    task.ProcessRequest,
    task.KillRequest,
    task.ResizePtyRequest,
    task.UpdateTaskRequest,
    task.RuncOptions,
)
_SPEC = {
    "process": {"args": ["a"], "env": ["A=b"], "cwd": "/", "user": {"uid": 1, "gid": 2, "additionalGids": [3]}},
    "linux": {"cgroupsPath": "/a/b", "namespaces": [{"type": "pid"}, {"type": "ipc", "path": "/proc/1/ns/ipc"}]},
    "annotations": {workload.OWN_IMAGE: "r/i:t", workload.SANDBOX_ID: "s"},
    "mounts": [{"destination": "/d", "source": "/s", "type": "bind", "options": ["ro"]}],
}
SEEDS: list[bytes] = [
    codec.encode(
        task.CreateTaskRequest(
            id="c", bundle="/b", rootfs=(task.Mount("overlay", "o", "", ("ro",)),), terminal=True, stdin="i", stdout="o"
        )
    ),
    codec.encode(task.KillRequest("c", "e", 9, True)),
    json.dumps(_SPEC).encode(),
]


def target(data: bytes) -> None:
    for request in _REQUESTS:
        try:
            codec.decode(request, data)
        except PeerError:
            continue
    try:
        spec = json.loads(data)
    except (ValueError, RecursionError):
        return
    if isinstance(spec, dict):
        try:
            workload.translate(spec, terminal=False)
        except EnclaveCcError:
            return
