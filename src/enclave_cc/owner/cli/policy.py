"""Set and get policies. KIND is `release` (who gets a resource) or `attestation` (how evidence is judged)."""

from __future__ import annotations

import argparse
import sys

from enclave_cc import console
from enclave_cc.owner.cli.policy_files import read_policy
from enclave_cc.owner.kbs.client import AdminClient
from enclave_cc.owner.kbs.directory import DIRECTORY_HELP

KINDS = ("release", "attestation")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    put = actions.add_parser("set", help="activate a policy; nothing changes if it does not compile")
    put.add_argument("kind", choices=KINDS)
    put.add_argument("file", metavar="FILE", help="Rego; - for standard input")
    get = actions.add_parser("get", help="print the active policy")
    get.add_argument("kind", choices=KINDS)
    get.add_argument("--json", action="store_true", help="with id, version and digest")
    for action in (put, get):
        action.add_argument("--kbs", metavar="DIR", help=f"KBS directory; {DIRECTORY_HELP}")


def run(arguments: argparse.Namespace) -> int:
    match arguments.action:
        case "set":
            AdminClient.from_directory(arguments.kbs).set_policy(arguments.kind, read_policy(arguments.file))
        case "get":
            policy = AdminClient.from_directory(arguments.kbs).get_policy(arguments.kind)
            if arguments.json:
                console.print_value(policy)
            else:
                sys.stdout.write(str(policy.get("text")))
    return 0
