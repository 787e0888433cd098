"""Print a pod's output, its agent's log (--agent) or boot init's (--boot)."""

from __future__ import annotations

import argparse
import os
import sys
import time
from contextlib import suppress

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
    if not arguments.agent:
        how = f"Use kubectl logs or crictl logs; boot init's are {directory}/c/*/shared/boot.log; --agent works here."
        records.require_own(directories.read_json(directory / "pod.json"), how)
    name = "agent.log" if arguments.agent else "boot.log" if arguments.boot else "output.log"
    plain = arguments.agent or arguments.boot
    reader: logs.LogReader | None = None
    rest = b""
    try:
        while True:
            live = (places.pods / directory.name).exists()
            if reader is None:
                reader = _open(places, directory.name, name)
            if reader is None and not live:
                if not directories.is_known(places, directory.name):
                    return 0  # removed while we followed
                raise UsageError("not-found", f"pod {arguments.pod} left no {name}")
            if reader is not None:
                rest = _show(rest + reader.read(), plain=plain, timestamps=arguments.timestamps)
            if not arguments.follow or not live:
                return 0
            time.sleep(_INTERVAL)
    finally:
        if reader is not None:
            reader.close()


def _open(places: Directories, identifier: str, name: str) -> logs.LogReader | None:
    """The live pod's log, else its record's."""
    for place in (places.pods, places.records):
        path = records.find_log(place / identifier, name)
        if path is not None:
            with suppress(FileNotFoundError):  # the pod ends just now
                return logs.LogReader(path)
    return None


def _show(data: bytes, *, plain: bool, timestamps: bool) -> bytes:
    """Prints whole entries; what is behind the last one."""
    if plain:
        _write(1, data)
        return b""
    *lines, rest = data.split(b"\n")
    for line in lines:
        entry = logs.parse_line(line)
        if entry is not None:
            when, stream, text = entry
            _write(1 if stream == "stdout" else 2, (when.encode() + b" " if timestamps else b"") + text)
    return rest


def _write(descriptor: int, data: bytes) -> None:
    sys.stdout.flush()
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
