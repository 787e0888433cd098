"""Add, list and remove reference values: the measurements that the attestation policy accepts."""

from __future__ import annotations

import argparse
import json
import time
from datetime import UTC, datetime

from enclave_cc import console
from enclave_cc.errors import PeerError, UsageError
from enclave_cc.owner.cli.resource import read_input
from enclave_cc.owner.kbs.client import AdminClient
from enclave_cc.owner.kbs.directory import DIRECTORY_HELP
from enclave_cc.owner.reference import rvps, values
from enclave_cc.record import replace


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    add = actions.add_parser("add", help="add a bundle's reference.json, or the values of an RVPS message")
    add.add_argument("file", metavar="FILE", help="- for standard input")
    add.add_argument("--expires", metavar="DATE", help="date (2027-01-31) or RFC 3339 time after which they no longer count")
    add.add_argument("--by-signer", action="store_true", help="accept this signer's product from this SVN on, not one build")
    listing = actions.add_parser("ls", help="list them")
    listing.add_argument("--json", action="store_true")
    remove = actions.add_parser("rm", help="remove one value, or all of a name")
    remove.add_argument("name", metavar="NAME")
    remove.add_argument("value", metavar="VALUE", nargs="?", help="text, or JSON")
    for action in (add, listing, remove):
        action.add_argument("--kbs", metavar="DIR", help=f"KBS directory; {DIRECTORY_HELP}")


def run(arguments: argparse.Namespace) -> int:
    client = AdminClient.from_directory(arguments.kbs)
    match arguments.action:
        case "add":
            _add(client, arguments)
        case "ls":
            _list(client, as_json=arguments.json)
        case _:
            _remove(client, arguments.name, arguments.value)
    return 0


def _add(client: AdminClient, arguments: argparse.Namespace) -> None:
    body = read_input(arguments.file)
    try:
        # The two forms share no member: a bundle says its role, a message its payload.
        if b'"payload"' in body:
            found = rvps.parse_message(body)
        else:
            found = values.parse_bundle_reference(body, by_signer=arguments.by_signer)
    except PeerError as error:
        raise UsageError(
            "usage", f"{arguments.file}: {error.what}", "Give a bundle's reference.json or an RVPS message."
        ) from error
    if arguments.expires is not None:
        found = [replace(value, expires=_parse_time(arguments.expires)) for value in found]
    client.add_reference_values(found)
    for value in found:
        print(f"added {value.name} {_show(value.value)}")
        if value.name == values.APP_MR_ENCLAVE:
            print("note: an app enclave gets its keys from its agent, never from the KBS; no default policy asks for it")


def _list(client: AdminClient, *, as_json: bool) -> None:
    rows = []
    for value in client.list_reference_values():
        row = value.to_json()
        if not as_json:
            expires = None if value.expires is None else datetime.fromtimestamp(value.expires, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            row |= {"value": _show(value.value), "expires": expires, "source": values.describe(value.source) or None}
        rows.append(row)
    console.print_rows(rows, ("name", "value", "expires", "source"), as_json=as_json)


def _remove(client: AdminClient, name: str, text: str | None) -> None:
    if text is None:
        client.remove_reference_value(name)
        return
    try:
        value = json.loads(text)
    except ValueError:
        value = text
    # A measurement may be all digits, which JSON takes for a number.
    client.remove_reference_value(name, text if isinstance(value, int | float) and len(text) == 64 else value)


def _show(value: object) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value, separators=(",", ":"), sort_keys=True)


def _parse_time(text: str) -> int:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise UsageError("usage", f"{text!r} is neither a date nor an RFC 3339 time") from error
    end = int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())
    if end <= time.time():
        raise UsageError("usage", f"{text} is past", "To stop accepting a value, remove it with `enclave-cc refvals rm`.")
    return end
