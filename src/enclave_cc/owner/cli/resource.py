"""Set, get, list, tag and remove resources in the KBS. PATH is REPOSITORY/TYPE/TAG, or its kbs:/// URI."""

from __future__ import annotations

import argparse
import base64
import json
import os
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from enclave_cc import console
from enclave_cc.errors import UsageError, explain_os_error
from enclave_cc.owner.kbs.client import AdminClient
from enclave_cc.owner.kbs.directory import DIRECTORY_HELP


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    put = actions.add_parser("set", help="store a new version")
    put.add_argument("path", metavar="PATH")
    put.add_argument("file", metavar="FILE", help="- for standard input")
    put.add_argument("--tag", metavar="KEY=VALUE", action="append", help="tags instead of the present ones; repeatable")
    get = actions.add_parser("get", help="print the latest version")
    get.add_argument("path", metavar="PATH")
    get.add_argument("-o", "--output", metavar="FILE", help="instead of standard output; made with mode 0600")
    get.add_argument("--version", metavar="N", type=_parse_version, help="an earlier version")
    tag = actions.add_parser("tag", help="set tags of the latest version, or take them off")
    tag.add_argument("path", metavar="PATH")
    tag.add_argument("tags", metavar="KEY=VALUE|KEY-", nargs="+", help="KEY- takes the tag off")
    history = actions.add_parser("history", help="list versions: when, by whom, how large")
    history.add_argument("path", metavar="PATH")
    remove = actions.add_parser("rm", help="remove all versions")
    remove.add_argument("path", metavar="PATH")
    listing = actions.add_parser("ls", help="list paths; values are never shown")
    listing.add_argument("prefix", metavar="PREFIX", nargs="?", default="")
    listing.add_argument("--tag", metavar="KEY[=VALUE]", action="append", default=[], help="only those with this tag; repeatable")
    every = actions.add_parser("import", help="take over a directory of Trustee's LocalFs back-end: REPOSITORY/TYPE/TAG files")
    every.add_argument("directory", metavar="DIR")
    every.add_argument("--dry-run", action="store_true", help="only tell what would be set")
    for action in (put, get, tag, history, remove, listing, every):
        action.add_argument("--kbs", metavar="DIR", help=f"KBS directory; {DIRECTORY_HELP}")
        action.add_argument("--json", action="store_true", help="the value in base64" if action is get else None)


def run(arguments: argparse.Namespace) -> int:
    client = AdminClient.from_directory(arguments.kbs)
    path = _strip(getattr(arguments, "path", ""))
    match arguments.action:
        case "set":
            tags = None if arguments.tag is None else dict(_split_tag(text) for text in arguments.tag)
            version = client.set_resource(path, read_input(arguments.file), tags=tags)
            if arguments.json:
                console.print_value({"path": path, "version": version})
        case "get":
            version, value = client.read_resource(path, arguments.version)
            if arguments.json:
                document = {"path": path, "version": version, "value": base64.b64encode(value).decode()}
                value = json.dumps(document, indent=2, sort_keys=True).encode() + b"\n"
            _write(value, arguments.output)
        case "tag":
            changed = client.tag_resource(path, dict(_parse_change(text) for text in arguments.tags))
            if arguments.json:
                console.print_value(changed)
        case "history":
            rows = client.list_versions(path)
            _print(rows, ("version", "size", "created", "author", "removed", "removed_by"), as_json=arguments.json)
        case "rm":
            client.delete_resource(path)
            if arguments.json:
                console.print_value({"path": path})
        case "import":
            _import(client, Path(arguments.directory), dry_run=arguments.dry_run, as_json=arguments.json)
        case _:
            wanted = {key: value if mark else None for key, mark, value in (text.partition("=") for text in arguments.tag)}
            rows = client.list_resources(_strip(arguments.prefix), tags=wanted)
            _print(rows, ("path", "version", "size", "created", "author", "tags"), as_json=arguments.json)
    return 0


def read_input(name: str) -> bytes:
    """The bytes of a file, or of standard input for `-`. Raises `UsageError("not-found")`."""
    if name == "-":
        return sys.stdin.buffer.read()
    try:
        return Path(name).read_bytes()
    except OSError as error:
        raise UsageError("not-found", f"{name} cannot be read: {error.strerror}", "Check the file's name.") from error


def _import(client: AdminClient, directory: Path, *, dry_run: bool, as_json: bool) -> None:
    """Each regular file three levels down; what is there already with the same value stays as it is."""
    rows: list[dict[str, Any]] = []
    if not directory.is_dir():
        raise UsageError("not-found", f"{directory} is not a directory", "Name Trustee's dir_path.")
    for file in sorted(directory.glob("*/*/*")):
        if file.is_symlink() or not file.is_file() or any(part.is_symlink() for part in (file.parent, file.parent.parent)):
            raise UsageError("usage", f"{file} is not a plain file", "Move it out of the directory.")
        path, value = file.relative_to(directory).as_posix(), read_input(str(file))
        if dry_run:
            rows.append({"path": path, "size": len(value), "version": None})
            continue
        try:
            same = client.get_resource(path) == value
        except UsageError as error:
            if error.code != "not-found":
                raise
            same = False
        rows.append({"path": path, "size": len(value), "version": None if same else client.set_resource(path, value)})
    console.print_rows(rows, ("path", "size", "version"), as_json=as_json)


def _print(rows: list[dict[str, Any]], columns: tuple[str, ...], *, as_json: bool) -> None:
    if not as_json:
        for row in rows:
            for name in ("created", "removed"):
                if row.get(name) is not None:
                    row[name] = datetime.fromtimestamp(row[name], UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            if "tags" in row:
                row["tags"] = [f"{key}={value}" for key, value in row["tags"].items()]
    console.print_rows(rows, columns, as_json=as_json)


def _parse_version(text: str) -> int:
    if not text.isascii() or not text.isdecimal() or not 0 < int(text[:16]) < 1 << 48:
        raise UsageError("usage", f"{text!r} is not the number of a version")
    return int(text)


def _split_tag(text: str) -> tuple[str, str]:
    key, mark, value = text.partition("=")
    if not mark:
        raise UsageError("usage", f"{text!r} is not KEY=VALUE")
    return key, value


def _parse_change(text: str) -> tuple[str, str | None]:
    if "=" not in text and text.endswith("-"):
        return text[:-1], None
    return _split_tag(text)


def _strip(path: str) -> str:
    """A `kbs:///` URI is taken for the path in it."""
    return path.removeprefix("kbs:///")


def _write(value: bytes, output: str | None) -> None:
    if output is None:
        sys.stdout.buffer.write(value)
        sys.stdout.buffer.flush()
        return
    try:
        with os.fdopen(os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            os.fchmod(file.fileno(), 0o600)  # also of a file that was there
            file.write(value)
    except OSError as error:
        raise explain_os_error(error) from error
