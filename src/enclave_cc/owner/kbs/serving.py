"""A server from its start to its orderly end, by signals."""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
from collections.abc import Callable

from enclave_cc.owner.kbs.server import KbsServer


async def serve(
    server: KbsServer, host: str, port: int, ready: Callable[[str], None], *, listener: socket.socket | None = None
) -> None:
    """Serves until SIGTERM or SIGINT; a second one hurries the end. `ready` gets the URL once connections are taken.

    With `listener`, as a worker: also until standard input ends, which is the parent's end."""
    stopping, hurry = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def end() -> None:
        (hurry if stopping.is_set() else stopping).set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end)
    if listener is not None:
        loop.add_signal_handler(signal.SIGHUP, lambda: None)  # for the parent

        def orphaned() -> None:
            loop.remove_reader(0)
            stopping.set()

        loop.add_reader(0, orphaned)
    await server.start(host, port, listener)
    roots = [{"name": root.name, "simulated": root.simulated} for root in server.routes.roots.list_roots()]
    evidence = sorted(server.routes.broker.verifiers)
    server.routes.log.write("serving", {"url": server.url, "roots": roots, "evidence": evidence})
    try:
        ready(server.url)
        await stopping.wait()
    finally:
        await server.stop(hurry)
        sys.stderr.flush()
