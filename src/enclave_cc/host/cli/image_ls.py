"""List what the node's sealed cache holds. Which image a blob belongs to, only agents can tell."""

from __future__ import annotations

import argparse
import time

from enclave_cc import console
from enclave_cc.host.cli import options
from enclave_cc.host.sandbox import cache
from enclave_cc.host.sandbox.directories import Directories


def add_arguments(parser: argparse.ArgumentParser) -> None:
    options.add_common(parser)


def run(arguments: argparse.Namespace) -> int:
    blobs = cache.list_blobs(Directories.of(options.load(arguments)).cache)
    rows = [
        {
            "id": blob.id,
            "size": blob.size if arguments.json else f"{blob.size / (1 << 20):.1f} MiB",
            "used": blob.used if arguments.json else time.strftime("%Y-%m-%d %H:%M", time.localtime(blob.used)),
            "pinned_by": list(blob.pinned_by),
        }
        for blob in blobs
    ]
    console.print_rows(rows, ("id", "size", "used", "pinned_by"), as_json=arguments.json)
    return 0
