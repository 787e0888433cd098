"""Stop pods: the stop signal of the image first, the end by force after a while."""

from __future__ import annotations

import argparse

from enclave_cc.host.cli import options
from enclave_cc.host.sandbox import directories, ending
from enclave_cc.host.sandbox.directories import Directories


def add_arguments(parser: argparse.ArgumentParser) -> None:
    options.add_common(parser)
    parser.add_argument(
        "-t", "--time", type=float, metavar="SECONDS", help="how long the workload may take (default: [deadlines] stop)"
    )
    parser.add_argument("pods", nargs="+", metavar="POD", help="id, beginning of an id, or name")


def run(arguments: argparse.Namespace) -> int:
    configuration = options.load(arguments)
    grace = configuration.deadlines.stop if arguments.time is None else max(0.0, arguments.time)
    for word in arguments.pods:
        directory = directories.find(Directories.of(configuration), word)
        ending.stop(configuration, directory, grace=grace)
        print(directory.name)
    return 0
