"""Serve the key broker. Decisions and faults go to stderr, one JSON object per line.

SIGTERM ends it in order: new connections are refused, running requests answered. With --workers, SIGHUP replaces the
worker processes one after another, without a refused connection.
"""

from __future__ import annotations

import argparse
import os
import socket
import sys

from enclave_cc.errors import UsageError
from enclave_cc.owner.kbs.directory import KbsDirectory, split_listen

MAX_WORKERS = 256


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dir", "--kbs", dest="directory", metavar="DIR", help="default: $ENCLAVE_CC_KBS, else ~/.config/enclave-cc/kbs"
    )
    parser.add_argument("--listen", metavar="HOST:PORT", help="instead of kbs.toml's; port 0 takes any free one")
    parser.add_argument("--workers", metavar="N", type=int, default=1, help="processes to serve with; 0: one for each core")
    parser.add_argument("--descriptor", type=int, help=argparse.SUPPRESS)  # of the socket, in a worker
    parser.add_argument("--metrics-descriptor", type=int, help=argparse.SUPPRESS)  # of what workers count in together


def run(arguments: argparse.Namespace) -> int:
    from enclave_cc.owner.kbs.config import KbsConfig

    directory = KbsDirectory.locate(arguments.directory)
    config = KbsConfig.load(directory)
    host, port = config.listen if arguments.listen is None else split_listen(arguments.listen)
    count = arguments.workers or len(os.sched_getaffinity(0))
    if not 1 <= count <= MAX_WORKERS:
        raise UsageError("usage", f"--workers is 0 to {MAX_WORKERS}")

    def announce(url: str) -> None:
        # A KBS on all addresses is reached from this machine by loopback.
        shown = url.replace("//0.0.0.0:", "//127.0.0.1:").replace("//[::]:", "//[::1]:")
        if arguments.descriptor is None:
            replacement = directory.url_file.with_suffix(f".{os.getpid()}")
            replacement.write_text(shown + "\n")
            replacement.replace(directory.url_file)
        print(f"kbs ready {shown}", flush=True)

    if count > 1:
        from enclave_cc.owner.kbs.metrics import SharedSlots
        from enclave_cc.owner.kbs.workers import Timing, Workers, open_listener

        shared = SharedSlots.create()
        command = [sys.executable, "-m", "enclave_cc", "kbs", "serve", "--dir", str(directory.path)]
        command += ["--metrics-descriptor", str(shared), "--descriptor"]
        limits = config.limits
        timing = Timing(end=limits.end_delay + limits.end_deadline + 10)
        with open_listener(host, port) as listener:
            Workers(command, listener, count, inherited=[shared], timing=timing).serve(announce)
        return 0

    import asyncio

    from enclave_cc.owner.kbs import assembly, serving
    from enclave_cc.owner.kbs.metrics import SharedSlots

    slots = None if arguments.metrics_descriptor is None else SharedSlots(arguments.metrics_descriptor)
    inherited = None if arguments.descriptor is None else socket.socket(fileno=arguments.descriptor)
    with assembly.assemble(directory, config, shared_metrics=slots) as kbs:
        asyncio.run(serving.serve(kbs, host, port, announce, listener=inherited))
    return 0
