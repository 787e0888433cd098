"""The key that signs attestation tokens. Works on the KBS's own directory, while it serves or not: running servers
notice, and go on accepting tokens of the old key until these expire."""

from __future__ import annotations

import argparse
import time

from enclave_cc import console
from enclave_cc.owner.kbs import token_keys
from enclave_cc.owner.kbs.directory import DIRECTORY_HELP, KbsDirectory


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    rotate = actions.add_parser("rotate", help="make a new key; the old one's private half is removed")
    listing = actions.add_parser("ls", help="list the current key and the retired ones")
    listing.add_argument("--json", action="store_true")
    for action in (rotate, listing):
        action.add_argument("--kbs", "--dir", metavar="DIR", help=f"KBS directory; {DIRECTORY_HELP}")


def run(arguments: argparse.Namespace) -> int:
    directory = KbsDirectory.locate(arguments.kbs)
    if arguments.action == "rotate":
        directory.read_certificate()  # there is a KBS directory
        print(f"tokens are signed by {token_keys.rotate(directory.path, now=time.time())} from now on")
        return 0
    keys = token_keys.read_key_set(directory.path)
    rows: list[dict[str, object]] = [{"kid": keys.key.public.kid, "retired": None}]
    rows += [{"kid": token_keys.read_kid(pem), "retired": retired} for pem, retired in keys.retired]
    console.print_rows(rows, ("kid", "retired"), as_json=arguments.json)
    return 0
