"""List pods: those that live, and with -a those that ended."""

from __future__ import annotations

import argparse
import time

from enclave_cc import console
from enclave_cc.host.cli import options
from enclave_cc.host.sandbox import directories, ending
from enclave_cc.host.sandbox.directories import Directories
from enclave_cc.host.sandbox.states import FINAL, State

_COLUMNS = ("id", "name", "image", "state", "age", "exit_code")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    options.add_common(parser)
    parser.add_argument("-a", "--all", action="store_true", help="those that ended, too")
    parser.add_argument("-q", "--quiet", action="store_true", help="ids only")


def run(arguments: argparse.Namespace) -> int:
    configuration = options.load(arguments)
    places = Directories.of(configuration)
    rows = []
    for directory, written in directories.list_pods(places):
        record = dict(written)
        if directory.parent == places.pods and not ending.is_live(configuration, directory):
            record["state"] = str(State.LOST)  # the next `run` or `rm` takes it down
        ended = directory.parent == places.records or record.get("state") in FINAL
        if ended and not arguments.all:
            continue
        created = record.get("created")
        age = _format_age(time.time() - created) if isinstance(created, float) else None
        rows.append({**record, "age": age} if not arguments.json else record)
    if arguments.quiet and not arguments.json:
        for row in rows:
            print(row["id"])
        return 0
    console.print_rows(rows, _COLUMNS, as_json=arguments.json)
    return 0


def _format_age(seconds: float) -> str:
    for size, unit in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds >= size:
            return f"{int(seconds // size)}{unit}"
    return f"{int(seconds)}s"
