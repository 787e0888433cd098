"""Our ttrpc against containerd's Go library, both ways: we call its event service, and `ctr shim` calls us.

Needs containerd and ctr (Debian: containerd); without them there is nothing to be held against.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from enclave_cc.errors import PeerError
from enclave_cc.transport.ttrpc import Client
from enclave_cc.transport.ttrpc_server import Call, Server, WithCall
from enclave_cc.wire.pb import codec, shim_events, task

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(not (shutil.which("containerd") and shutil.which("ctr")), reason="containerd is not installed"),
]
TASK = task.SERVICES[0]


@pytest.fixture
def containerd(tmp_path: Path) -> Iterator[Path]:
    """A containerd in a directory of its own; its gRPC socket, with the ttrpc socket beside it."""
    socket = tmp_path / "c.sock"
    (tmp_path / "config.toml").write_text(
        f'version = 2\nroot = "{tmp_path}/root"\nstate = "{tmp_path}/state"\ndisabled_plugins = ["io.containerd.grpc.v1.cri"]\n'
        f'[grpc]\naddress = "{socket}"\n[ttrpc]\naddress = "{socket}.ttrpc"\n'
    )
    process = subprocess.Popen(
        ["containerd", "-c", str(tmp_path / "config.toml"), "-l", "error"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    until = time.monotonic() + 20
    while not Path(f"{socket}.ttrpc").exists() and time.monotonic() < until:
        time.sleep(0.02)
    yield socket
    process.terminate()
    process.wait(20)


def test_containerds_server_takes_our_calls(containerd: Path) -> None:
    exited = shim_events.TaskExit("c1", "c1", 42, 7, task.Timestamp(1_700_000_000))
    request = shim_events.wrap(exited, "ns", 1_700_000_000_000_000_005)
    empty = codec.encode(shim_events.ForwardRequest(shim_events.Envelope(topic="/x")))
    with subprocess.Popen(["ctr", "-a", str(containerd), "events"], stdout=subprocess.PIPE) as listener:
        try:
            with Client(f"{containerd}.ttrpc", 10) as client:
                time.sleep(1)  # until ctr has subscribed
                for _ in range(50):
                    metadata = [("containerd-namespace-ttrpc", "ns")]
                    assert client.call(shim_events.SERVICE, shim_events.METHOD, request, timeout=5, metadata=metadata) == b""
                for service, method, data, code in (
                    (shim_events.SERVICE, "Nope", b"", "rpc-failed"),
                    ("no.Such", "Service", b"", "rpc-failed"),
                    (shim_events.SERVICE, shim_events.METHOD, b"\xff", "rpc-failed"),
                    (shim_events.SERVICE, shim_events.METHOD, empty, "usage"),
                ):
                    with pytest.raises(PeerError) as caught:
                        client.call(service, method, data)
                    assert caught.value.code == code
                assert client.call(shim_events.SERVICE, shim_events.METHOD, request) == b""
            assert listener.stdout is not None
            line = listener.stdout.readline().decode()
        finally:
            listener.terminate()
    assert line.startswith("2023-11-14 22:13:20.000000005 +0000 UTC ns /tasks/exit")
    assert '"container_id":"c1","id":"c1","pid":42,"exit_status":7' in line


def test_containerds_client_takes_our_answers(tmp_path: Path) -> None:
    """`ctr shim` looks for a shim's socket at a fixed place that it derives from containerd's address."""
    address, seen = str(tmp_path / "c.sock"), list[Call]()
    name = hashlib.sha256(f"{address}/default/c1".encode()).hexdigest()
    socket = Path("/run/containerd/s") / name
    made = [folder for folder in (socket.parent.parent, socket.parent) if not folder.exists()]
    socket.parent.mkdir(parents=True, exist_ok=True)

    def state(call: Call) -> bytes:
        seen.append(call)
        found = codec.decode(task.ProcessRequest, call.payload).id
        if len(seen) > 1:
            raise PeerError("not-found", f"there is no task {found!r}")
        return codec.encode(task.StateResponse(id=found, bundle="/bundle", pid=4242, status=2))

    try:
        with Server(str(socket), {TASK: {"State": WithCall(state)}}, log=lambda _: None):
            command = ["ctr", "-a", address, "shim", "--id", "c1", "state"]
            done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
            assert done.returncode == 0, done.stderr
            assert '"pid": 4242' in done.stdout
            assert '"bundle": "/bundle"' in done.stdout
            assert seen[0].service == TASK
            assert codec.decode(task.ProcessRequest, seen[0].payload) == task.ProcessRequest("c1")
            done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
            assert done.returncode == 1
            assert "not-found: there is no task 'c1'" in done.stderr
    finally:
        for folder in reversed(made):
            folder.rmdir()
