"""Set, get, list and remove resources in the KBS. PATH is REPOSITORY/TYPE/TAG."""

from __future__ import annotations

import argparse
import sys
from datetime import UTC, datetime
from pathlib import Path

from enclave_cc import console
from enclave_cc.errors import UsageError
from enclave_cc.owner.kbs.client import AdminClient
from enclave_cc.owner.kbs.directory import DIRECTORY_HELP


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    put = actions.add_parser("set", help="store a new version")
    put.add_argument("path", metavar="PATH")
    put.add_argument("file", metavar="FILE", help="- for standard input")
    get = actions.add_parser("get", help="print the latest version")
    get.add_argument("path", metavar="PATH")
    get.add_argument("-o", "--output", metavar="FILE", help="instead of standard output; made with mode 0600")
    remove = actions.add_parser("rm", help="remove all versions")
    remove.add_argument("path", metavar="PATH")
    listing = actions.add_parser("ls", help="list paths; values are never shown")
    listing.add_argument("prefix", metavar="PREFIX", nargs="?", default="")
    listing.add_argument("--json", action="store_true")
    for action in (put, get, remove, listing):
        action.add_argument("--kbs", metavar="DIR", help=f"KBS directory; {DIRECTORY_HELP}")


def run(arguments: argparse.Namespace) -> int:
    client = AdminClient.from_directory(arguments.kbs)
    match arguments.action:
        case "set":
            client.set_resource(_strip(arguments.path), read_input(arguments.file))
        case "get":
            _write(client.get_resource(_strip(arguments.path)), arguments.output)
        case "rm":
            client.delete_resource(_strip(arguments.path))
        case _:
            rows = client.list_resources(arguments.prefix)
            if not arguments.json:
                for row in rows:
                    row["created"] = datetime.fromtimestamp(row["created"], UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            console.print_rows(rows, ("path", "version", "size", "created"), as_json=arguments.json)
    return 0


def read_input(name: str) -> bytes:
    """The bytes of a file, or of standard input for `-`. Raises `UsageError("not-found")`."""
    if name == "-":
        return sys.stdin.buffer.read()
    try:
        return Path(name).read_bytes()
    except OSError as error:
        raise UsageError("not-found", f"{name} cannot be read: {error.strerror}", "Check the file's name.") from error


def _strip(path: str) -> str:
    """A `kbs:///` URI is taken for the path in it."""
    return path.removeprefix("kbs:///")


def _write(value: bytes, output: str | None) -> None:
    if output is None:
        sys.stdout.buffer.write(value)
        sys.stdout.buffer.flush()
        return
    path = Path(output)
    path.touch(mode=0o600)
    path.write_bytes(value)
