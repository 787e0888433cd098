"""Remove pods and everything they left."""

from __future__ import annotations

import argparse
import sys

from enclave_cc.errors import UsageError
from enclave_cc.host.cli import options
from enclave_cc.host.sandbox import directories, ending
from enclave_cc.host.sandbox.directories import Directories
from enclave_cc.host.sandbox.reconcile import reconcile


def add_arguments(parser: argparse.ArgumentParser) -> None:
    options.add_common(parser)
    parser.add_argument("-f", "--force", action="store_true", help="also those that run")
    parser.add_argument("-a", "--all", action="store_true", help="all that ended; with -f all")
    parser.add_argument("pods", nargs="*", metavar="POD", help="id, beginning of an id, or name")


def run(arguments: argparse.Namespace) -> int:
    configuration = options.load(arguments)
    places = Directories.of(configuration)
    if not arguments.pods and not arguments.all:
        raise UsageError("usage", "no pod is named", "Name one, or use --all.")
    chosen = [directories.find(places, word) for word in arguments.pods]
    if arguments.all:
        chosen += [
            directory for directory, _ in directories.list_pods(places) if arguments.force or directory.parent == places.records
        ]
    for directory in dict.fromkeys(chosen):
        ending.remove(configuration, directory, force=arguments.force)
        print(directory.name)
    for error in reconcile(configuration):
        print(f"warning: {error}", file=sys.stderr)
    return 0
