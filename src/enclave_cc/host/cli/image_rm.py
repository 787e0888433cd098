"""Remove sealed blobs from the node's cache, by their id in `image ls`; the next run pulls what it misses."""

from __future__ import annotations

import argparse

from enclave_cc.host.cli import options
from enclave_cc.host.sandbox import cache
from enclave_cc.host.sandbox.directories import Directories


def add_arguments(parser: argparse.ArgumentParser) -> None:
    options.add_common(parser)
    parser.add_argument("blobs", nargs="+", metavar="ID", help="id or beginning of an id")


def run(arguments: argparse.Namespace) -> int:
    configuration = options.load(arguments)
    for identifier in cache.remove_blobs(
        Directories.of(configuration).cache, arguments.blobs, deadline=configuration.deadlines.remove
    ):
        print(identifier)
    return 0
