"""Remove pods and everything they left."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

from enclave_cc.errors import UsageError
from enclave_cc.host.cli import options
from enclave_cc.host.sandbox import directories, ending
from enclave_cc.host.sandbox.configuration import Configuration
from enclave_cc.host.sandbox.directories import Directories
from enclave_cc.host.sandbox.reconcile import reconcile


def add_arguments(parser: argparse.ArgumentParser) -> None:
    options.add_common(parser)
    parser.add_argument("-f", "--force", action="store_true", help="also those that run, but for a container manager's")
    parser.add_argument("-a", "--all", action="store_true", help="all that ended; with -f all")
    parser.add_argument("pods", nargs="*", metavar="POD", help="id, beginning of an id, or name")


def _is_managed(configuration: Configuration, directory: Path, record: Mapping[str, object]) -> bool:
    """A live pod of a container manager's is not among "all"."""
    return bool(record.get("manager")) and ending.is_live(configuration, directory)


def run(arguments: argparse.Namespace) -> int:
    configuration = options.load(arguments)
    places = Directories.of(configuration)
    if not arguments.pods and not arguments.all:
        raise UsageError("usage", "no pod is named", "Name one, or use --all.")
    chosen = [directories.find(places, word) for word in arguments.pods]
    if arguments.all:
        chosen += [
            directory
            for directory, record in directories.list_pods(places)
            if directory.parent == places.records or (arguments.force and not _is_managed(configuration, directory, record))
        ]
    for directory in dict.fromkeys(chosen):
        ending.remove(configuration, directory, force=arguments.force)
        print(directory.name)
    for error in reconcile(configuration):
        print(f"warning: {error}", file=sys.stderr)
    return 0
