"""Serve containerd's snapshots on a Unix socket: ordinary images by overlayfs, enclave images left to their enclaves."""

from __future__ import annotations

import argparse
import os
import signal
import socket
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from enclave_cc import console
from enclave_cc.errors import EnclaveCcError, EnvironmentFault, UsageError, foreign
from enclave_cc.host.sandbox import configuration
from enclave_cc.host.sandbox.directories import PodLock
from enclave_cc.host.snapshotter.companion import Companion
from enclave_cc.host.snapshotter.images import ContentStore
from enclave_cc.host.snapshotter.overlay import Overlay
from enclave_cc.host.snapshotter.snapshotter import Snapshotter
from enclave_cc.host.snapshotter.store import Store

_STOP = 10.0  # seconds that calls under way may take to end
_SOCKET_LIMIT = 107  # bytes; unix(7)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="enclave-cc-snapshotter", description=__doc__)
    parser.add_argument("--config", metavar="FILE", help=f"configuration (default: {configuration.DEFAULT_FILE})")
    parser.add_argument("--root", metavar="DIR", type=Path, help="where snapshots lie (default: snapshots below [paths] state)")
    parser.add_argument("--address", metavar="SOCKET", type=Path, help="default: snapshotter.sock below [paths] run")
    parser.add_argument("--content", metavar="DIR", type=Path, help="containerd's content store (default: below [containerd] root)")
    parser.add_argument("--no-fork-server", action="store_true", help="start each shim by itself: slower, and more memory for each")
    arguments = parser.parse_args(argv)
    try:
        settings = configuration.load(arguments.config)
        return run(
            arguments.root or settings.state / "snapshots",
            arguments.address or settings.run / "snapshotter.sock",
            arguments.content or settings.containerd_root / "io.containerd.content.v1.content",
            Companion(arguments.config) if not arguments.no_fork_server else None,
        )
    except EnclaveCcError as error:
        console.print_error(error, as_json=False)
        return error.exit


def run(root: Path, address: Path, content: Path, companion: Companion | None = None) -> int:
    """Serves until SIGTERM or SIGINT. Raises `EnclaveCcError` when it cannot start."""
    from enclave_cc.host.snapshotter import service  # grpc: 120 ms and 30 MiB

    if len(os.fsencode(address)) > _SOCKET_LIMIT:
        raise UsageError("bad-config", f"the socket's path {foreign(address)} is too long")
    try:
        root.mkdir(parents=True, exist_ok=True, mode=0o700)
        address.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise EnvironmentFault("environment", foreign(error)) from error
    lock = PodLock.try_take(root / "lock")
    if lock is None:
        raise UsageError("already-exists", f"another snapshotter serves {root}", "Stop it first.")
    overlay = Overlay(root)
    overlay.prepare()
    store = Store(root / "snapshots.db")
    snapshotter = Snapshotter(store, overlay, ContentStore(content))
    snapshotter.cleanup()  # what a killed predecessor left
    if companion is not None:
        companion.start()
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    server = service.serve(snapshotter, address)
    print(f"enclave-cc-snapshotter ready {address}", flush=True)
    _tell_service_manager()
    ended.wait()
    if companion is not None:
        companion.close()
    server.stop(_STOP).wait(_STOP + 1)
    store.close()
    lock.release(remove=False)
    return 0


def _tell_service_manager() -> None:
    """sd_notify(3): systemd starts containerd once we answer."""
    target = os.environ.get("NOTIFY_SOCKET", "")
    if target:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            sock.sendto(b"READY=1", "\0" + target[1:] if target.startswith("@") else target)


if __name__ == "__main__":
    sys.exit(main())
