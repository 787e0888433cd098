"""Reference values: the measurements, and whatever else policies compare with. Add, list, retire and remove them.

A bundle's statement, signed by its builder with `bundle build --sign` or `refvals sign`, is taken when the owner has named
the builder's key (`refvals key add`). Once a key is named, what is not signed needs --unsigned.
"""

from __future__ import annotations

import argparse
import json
import time
from datetime import UTC, datetime
from pathlib import Path

from enclave_cc import console
from enclave_cc.errors import PeerError, UsageError
from enclave_cc.owner.cli.resource import read_input
from enclave_cc.owner.kbs.client import AdminClient
from enclave_cc.owner.kbs.directory import DIRECTORY_HELP
from enclave_cc.owner.reference import rvps, values
from enclave_cc.owner.reference.values import ReferenceValue
from enclave_cc.record import replace

STATEMENT_FILE, REFERENCE_FILE = "reference.dsse.json", "reference.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    add = actions.add_parser("add", help="add a bundle, its statement or reference.json, or the values of an RVPS message")
    add.add_argument("file", metavar="BUNDLE|FILE", help="- for standard input")
    add.add_argument("--expires", metavar="DATE", help="date (2027-01-31) or RFC 3339 time after which they no longer count")
    add.add_argument("--by-signer", action="store_true", help="accept this signer's product from this SVN on, not one build")
    add.add_argument("--unsigned", action="store_true", help="take it without a builder's signature")
    put = actions.add_parser("set", help="make a name stand for these values, instead of what it stands for now")
    put.add_argument("name", metavar="NAME")
    put.add_argument("values", metavar="VALUE", nargs="+", help="text, or JSON; several make a list")
    put.add_argument("--whole", action="store_true", help="one VALUE as it is, not as a list of one")
    listing = actions.add_parser("ls", help="list them, with origin, version, expiry and state")
    listing.add_argument("--json", action="store_true")
    retire = actions.add_parser("retire", help="let a value count no longer, and remember why")
    restore = actions.add_parser("restore", help="take a retired value back")
    remove = actions.add_parser("rm", help="remove one value, or all of a name, without a trace")
    for action in (retire, restore, remove):
        action.add_argument("name", metavar="NAME")
        action.add_argument("value", metavar="VALUE", nargs="?", help="text, or JSON; without it, all of the name")
    retire.add_argument("--reason", default="", metavar="TEXT", help="for those who read a denial")
    sign = actions.add_parser("sign", help="sign a bundle's statement; needs no KBS")
    sign.add_argument("bundle", type=Path, metavar="BUNDLE")
    sign.add_argument(
        "--key", type=Path, required=True, metavar="FILE", help="private key: PEM, or cosign's (password: $COSIGN_PASSWORD)"
    )
    sign.add_argument("--expires", metavar="DATE", help="end of the measurements' validity")
    keys = actions.add_parser("key", help="name, list and remove the keys of builders")
    key_actions = keys.add_subparsers(dest="key_action", required=True, metavar="ACTION")
    key_add = key_actions.add_parser("add", help="name a builder's public key")
    key_add.add_argument("name", metavar="NAME")
    key_add.add_argument("file", metavar="FILE", help="public key, PEM")
    key_list = key_actions.add_parser("ls", help="list them")
    key_list.add_argument("--json", action="store_true")
    key_remove = key_actions.add_parser("rm", help="take no more statements by this key; what it signed stays")
    key_remove.add_argument("name", metavar="NAME")
    for action in (add, put, listing, retire, restore, remove, key_add, key_list, key_remove):
        action.add_argument("--kbs", metavar="DIR", help=f"KBS directory; {DIRECTORY_HELP}")


def run(arguments: argparse.Namespace) -> int:
    if arguments.action == "sign":
        return _sign(arguments)
    client = AdminClient.from_directory(arguments.kbs)
    match arguments.action:
        case "add":
            _add(client, arguments)
        case "set":
            _set(client, arguments)
        case "ls":
            _list(client, as_json=arguments.json)
        case "retire":
            count = client.retire_reference_value(arguments.name, _parse_value(arguments.value), reason=arguments.reason)
            print(f"retired {count} of {arguments.name}")
        case "restore":
            print(f"restored {client.restore_reference_value(arguments.name, _parse_value(arguments.value))} of {arguments.name}")
        case "key":
            _manage_keys(client, arguments)
        case _:
            client.remove_reference_value(arguments.name, _parse_value(arguments.value))
    return 0


def _add(client: AdminClient, arguments: argparse.Namespace) -> None:
    body, name = _read(arguments.file, unsigned=arguments.unsigned)
    expires = None if arguments.expires is None else _parse_time(arguments.expires)
    # The three forms share no member: an envelope says its payload's type, a message its payload, a bundle its role.
    if b'"payloadType"' in body:
        added = client.add_signed_statement(body, by_signer=arguments.by_signer, expires=expires)
    else:
        if not arguments.unsigned and client.list_reference_signers():
            raise UsageError(
                "usage",
                f"{name} is not signed, and this KBS knows builders' keys",
                "Add the bundle's signed statement, or say --unsigned.",
            )
        added = _parse_unsigned(body, name, by_signer=arguments.by_signer)
        added = [replace(value, expires=expires) for value in added]
        client.add_reference_values(added)
    for value in added:
        signed = f", signed by {value.source['signed_by']}" if "signed_by" in value.source else ""
        print(f"added {value.name} {_show(value.value)}{signed}")
        if value.name == values.APP_MR_ENCLAVE:
            print("note: an app enclave gets its keys from its agent, never from the KBS; no default policy asks for it")


def _read(given: str, *, unsigned: bool) -> tuple[bytes, str]:
    """The bytes to add and their name; of a bundle, its statement if there is one and it is wanted."""
    path = Path(given)
    if given != "-" and path.is_dir():
        signed = path / STATEMENT_FILE
        path = signed if signed.is_file() and not unsigned else path / REFERENCE_FILE
    return read_input(str(path)), str(path)


def _parse_unsigned(body: bytes, name: str, *, by_signer: bool) -> list[ReferenceValue]:
    try:
        return rvps.parse_message(body) if b'"payload"' in body else values.parse_bundle_reference(body, by_signer=by_signer)
    except PeerError as error:
        raise UsageError(
            "usage", f"{name}: {error.what}", "Give a bundle, its statement or reference.json, or an RVPS message."
        ) from error


def _set(client: AdminClient, arguments: argparse.Namespace) -> None:
    found = [_parse_value(text) for text in arguments.values]
    if arguments.whole and len(found) != 1:
        raise UsageError("usage", "--whole takes one VALUE")
    client.add_reference_values(
        [ReferenceValue(arguments.name, value, member=not arguments.whole) for value in found], replace=True
    )
    print(f"{arguments.name} is {', '.join(str(_show(value)) for value in found)}")


def _list(client: AdminClient, *, as_json: bool) -> None:
    rows, now = [], time.time()
    for value in client.list_reference_values():
        row = {**value.to_json(), "state": value.state(now)}
        if not as_json:
            state = value.state(now)
            if value.retired is not None:
                why = f": {value.retired.reason}" if value.retired.reason else ""
                state = f"retired {_show_time(value.retired.at)} by {value.retired.by}{why}"
            row |= {
                "value": _show(value.value),
                "expires": _show_time(value.expires),
                "state": state,
                "origin": values.describe(value.source) or None,
            }
        rows.append(row)
    console.print_rows(rows, ("name", "value", "version", "expires", "state", "origin"), as_json=as_json)


def _sign(arguments: argparse.Namespace) -> int:
    from enclave_cc.owner.publish.sign import read_key
    from enclave_cc.owner.reference import bundle_provenance

    expires = None if arguments.expires is None else _parse_time(arguments.expires)
    key = read_key(arguments.key)
    print(bundle_provenance.sign_bundle(arguments.bundle, key, expires=expires))
    return 0


def _manage_keys(client: AdminClient, arguments: argparse.Namespace) -> None:
    match arguments.key_action:
        case "add":
            pem = read_input(arguments.file).decode("ascii", "replace")
            if "PRIVATE KEY" in pem:
                raise UsageError("usage", f"{arguments.file} is a private key", "Give the public key: it goes to the KBS.")
            print(f"{arguments.name} is {client.add_reference_signer(arguments.name, pem)['key_id']}")
        case "ls":
            rows = client.list_reference_signers()
            if not arguments.json:
                for row in rows:
                    row["added"] = _show_time(row["added"])
            console.print_rows(rows, ("name", "key_id", "added", "added_by"), as_json=arguments.json)
        case _:
            client.remove_reference_signer(arguments.name)


def _parse_value(text: str | None) -> object:
    if text is None:
        return None
    try:
        value = json.loads(text)
    except ValueError:
        return text
    # A measurement may be all digits, which JSON takes for a number.
    return text if isinstance(value, int | float) and len(text) == 64 else value


def _show(value: object) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value, separators=(",", ":"), sort_keys=True)


def _show_time(at: int | None) -> str | None:
    return None if at is None else datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _parse_time(text: str) -> int:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise UsageError("usage", f"{text!r} is neither a date nor an RFC 3339 time") from error
    end = int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())
    if end <= time.time():
        raise UsageError("usage", f"{text} is past", "To stop accepting a value, retire it with `enclave-cc refvals retire`.")
    return end
