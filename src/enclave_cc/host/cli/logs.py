"""Print a pod's output, its agent's log (--agent) or boot init's (--boot)."""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

from enclave_cc.errors import UsageError
from enclave_cc.host.cli import options
from enclave_cc.host.sandbox import directories, logs, records
from enclave_cc.host.sandbox.directories import Directories

_INTERVAL = 0.1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    options.add_common(parser, json=False)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--agent", action="store_true", help="the agent enclave's log")
    which.add_argument("--boot", action="store_true", help="the log of boot init and of the root file system's server")
    parser.add_argument("-f", "--follow", action="store_true", help="go on until the pod ends")
    parser.add_argument("-T", "--timestamps", action="store_true", help="show when each line was printed")
    parser.add_argument("pod", metavar="POD", help="id, beginning of an id, or name")


def run(arguments: argparse.Namespace) -> int:
    places = Directories.of(options.load(arguments))
    directory = directories.find(places, arguments.pod)
    name = "agent.log" if arguments.agent else "boot.log" if arguments.boot else "output.log"
    formatted = not arguments.agent and not arguments.boot
    shown = 0
    while True:
        live = (places.pods / directory.name).exists()
        path = records.find_log(places.pods / directory.name, name) or records.find_log(places.records / directory.name, name)
        if path is None and not live:
            if not directories.is_known(places, directory.name):
                return 0  # removed while we followed
            raise UsageError("not-found", f"pod {arguments.pod} left no {name}")
        if path is not None:
            shown = _show(path, shown, formatted=formatted, timestamps=arguments.timestamps)
        if not arguments.follow or not live:
            return 0
        time.sleep(_INTERVAL)


def _show(path: Path, shown: int, *, formatted: bool, timestamps: bool) -> int:
    """Prints the log from entry (or byte) `shown` on; how many there are now."""
    if not formatted:
        content = path.read_bytes()
        _write(1, content[shown:])
        return len(content)
    number = 0
    for number, (when, stream, text) in enumerate(logs.read_lines(path), 1):
        if number > shown:
            _write(1 if stream == "stdout" else 2, (when.encode() + b" " if timestamps else b"") + text)
    return max(number, shown)


def _write(descriptor: int, data: bytes) -> None:
    sys.stdout.flush()
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
