"""Shrink the node's sealed cache: least recently used first, never what a container uses."""

from __future__ import annotations

import argparse

from enclave_cc import console
from enclave_cc.host.cli import options
from enclave_cc.host.sandbox import cache, directories
from enclave_cc.host.sandbox.directories import Directories
from enclave_cc.host.sandbox.reconcile import reconcile


def add_arguments(parser: argparse.ArgumentParser) -> None:
    options.add_common(parser)
    parser.add_argument("--max", metavar="SIZE", help="what may remain, as 10g (default: [limits] cache_bytes)")


def run(arguments: argparse.Namespace) -> int:
    configuration = options.load(arguments)
    places = Directories.of(configuration)
    reconcile(configuration)
    leases = set(cache.read_leases(places.cache))  # before the pods: a lease is younger than its pod
    live = {str(record.get("container")) for directory, record in directories.list_pods(places) if directory.parent == places.pods}
    live |= set(directories.list_ids(places.locks))  # starting: locked, not yet described
    cache.remove_leases(places.cache, leases - live)
    limit = options.parse_size(arguments.max) if arguments.max is not None else configuration.limits.cache_bytes
    removed = cache.collect(places.cache, limit, deadline=configuration.deadlines.remove)
    blobs = cache.list_blobs(places.cache)
    report = {"removed": len(removed), "blobs": len(blobs), "bytes": sum(blob.size for blob in blobs)}
    if arguments.json:
        console.print_value(report)
    else:
        print(f"removed {report['removed']} files; {report['blobs']} blobs with {report['bytes'] / (1 << 20):.1f} MiB remain")
    return 0
