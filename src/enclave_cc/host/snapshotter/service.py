"""containerd.services.snapshots.v1.Snapshots over gRPC: messages to operations, errors to status codes."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import grpc

from enclave_cc.errors import EnclaveCcError, EnvironmentFault, Status
from enclave_cc.host.snapshotter.snapshotter import Snapshotter
from enclave_cc.host.snapshotter.store import Snapshot
from enclave_cc.wire.pb import codec
from enclave_cc.wire.pb import snapshots as pb

_THREADS = 8
_MESSAGE_LIMIT = 16 << 20  # bytes, as containerd's own
_LIST_CHUNK = 100  # snapshots of one message of List
_CODES = {code.value[0]: code for code in grpc.StatusCode}

Handler = Callable[[Any], Any]


def describe(snapshot: Snapshot) -> pb.Info:
    return pb.Info(
        name=snapshot.name,
        parent=snapshot.parent,
        kind=int(snapshot.kind),
        created_at=pb.Timestamp.of(snapshot.created),
        updated_at=pb.Timestamp.of(snapshot.updated),
        labels=snapshot.labels,
    )


class Service:
    """One method per RPC; each takes and returns messages of `wire.pb.snapshots`."""

    def __init__(self, snapshotter: Snapshotter) -> None:
        self._snapshotter = snapshotter

    def prepare(self, request: pb.PrepareSnapshotRequest) -> pb.MountsResponse:
        return pb.MountsResponse(self._snapshotter.prepare(request.key, request.parent, request.labels))

    def view(self, request: pb.PrepareSnapshotRequest) -> pb.MountsResponse:
        return pb.MountsResponse(self._snapshotter.view(request.key, request.parent, request.labels))

    def mounts(self, request: pb.SnapshotRequest) -> pb.MountsResponse:
        return pb.MountsResponse(self._snapshotter.mounts(request.key))

    def commit(self, request: pb.CommitSnapshotRequest) -> pb.Empty:
        self._snapshotter.commit(request.name, request.key, request.parent, request.labels)
        return pb.Empty()

    def remove(self, request: pb.SnapshotRequest) -> pb.Empty:
        self._snapshotter.remove(request.key)
        return pb.Empty()

    def stat(self, request: pb.SnapshotRequest) -> pb.InfoResponse:
        return pb.InfoResponse(describe(self._snapshotter.stat(request.key)))

    def update(self, request: pb.UpdateSnapshotRequest) -> pb.InfoResponse:
        info = request.info or pb.Info()
        paths = request.update_mask.paths if request.update_mask else ()
        return pb.InfoResponse(describe(self._snapshotter.update(info.name, info.labels, paths)))

    def list(self, request: pb.ListSnapshotsRequest) -> Iterator[pb.ListSnapshotsResponse]:
        chunk: list[pb.Info] = []
        for snapshot in self._snapshotter.walk(request.filters):
            chunk.append(describe(snapshot))
            if len(chunk) == _LIST_CHUNK:
                yield pb.ListSnapshotsResponse(tuple(chunk))
                chunk = []
        if chunk:
            yield pb.ListSnapshotsResponse(tuple(chunk))

    def usage(self, request: pb.SnapshotRequest) -> pb.UsageResponse:
        usage = self._snapshotter.usage(request.key)
        return pb.UsageResponse(usage.size, usage.inodes)

    def cleanup(self, _request: pb.CleanupRequest) -> pb.Empty:
        self._snapshotter.cleanup()
        return pb.Empty()


def serve(snapshotter: Snapshotter, address: Path) -> grpc.Server:
    """A started server on the Unix socket `address`, which only root can connect to."""
    service = Service(snapshotter)
    unary: dict[str, tuple[type, Handler]] = {
        "Prepare": (pb.PrepareSnapshotRequest, service.prepare),
        "View": (pb.PrepareSnapshotRequest, service.view),
        "Mounts": (pb.SnapshotRequest, service.mounts),
        "Commit": (pb.CommitSnapshotRequest, service.commit),
        "Remove": (pb.SnapshotRequest, service.remove),
        "Stat": (pb.SnapshotRequest, service.stat),
        "Update": (pb.UpdateSnapshotRequest, service.update),
        "Usage": (pb.SnapshotRequest, service.usage),
        "Cleanup": (pb.CleanupRequest, service.cleanup),
    }
    methods = {
        name: grpc.unary_unary_rpc_method_handler(partial(_answer, request, handle)) for name, (request, handle) in unary.items()
    }
    methods["List"] = grpc.unary_stream_rpc_method_handler(partial(_stream, pb.ListSnapshotsRequest, service.list))
    options = [("grpc.max_receive_message_length", _MESSAGE_LIMIT), ("grpc.max_send_message_length", _MESSAGE_LIMIT)]
    server = grpc.server(ThreadPoolExecutor(_THREADS, thread_name_prefix="snapshots"), options=options)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(pb.SERVICE, methods),))
    address.unlink(missing_ok=True)
    server.add_insecure_port(f"unix:{address}")
    address.chmod(0o600)
    server.start()
    return server


def _answer(request: type, handle: Handler, data: bytes, context: grpc.ServicerContext) -> bytes:
    try:
        return codec.encode(handle(codec.decode(request, data)))
    except Exception as error:  # noqa: BLE001 - containerd must get an answer
        _abort(context, error)
        return b""


def _stream(request: type, handle: Handler, data: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
    try:
        for message in handle(codec.decode(request, data)):
            yield codec.encode(message)
    except Exception as error:  # noqa: BLE001
        _abort(context, error)


def _abort(context: grpc.ServicerContext, error: Exception) -> None:
    """Sets the status instead of raising: what is raised would be logged as a failure of the handler."""
    if isinstance(error, EnclaveCcError):
        status, text = error.row.ttrpc, str(error)
    else:
        status, text = Status.INTERNAL, f"internal: {type(error).__name__}"
        traceback.print_exception(error)
    if status is Status.INTERNAL or isinstance(error, EnvironmentFault):
        print(f"enclave-cc-snapshotter: {text}", file=sys.stderr, flush=True)
    context.set_code(_CODES[int(status)])
    context.set_details(text)
