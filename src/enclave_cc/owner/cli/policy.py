"""Set, get and lint policies. KIND is `release` (who gets a resource) or `attestation` (how evidence is judged)."""

from __future__ import annotations

import argparse
import sys

from enclave_cc import console
from enclave_cc.errors import UsageError
from enclave_cc.owner.cli.resource import read_input
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
    lint = actions.add_parser("lint", help="compile a policy without a KBS; says what is wrong and where")
    lint.add_argument("file", metavar="FILE")
    for action in (put, get):
        action.add_argument("--kbs", metavar="DIR", help=f"KBS directory; {DIRECTORY_HELP}")


def run(arguments: argparse.Namespace) -> int:
    match arguments.action:
        case "set":
            AdminClient.from_directory(arguments.kbs).set_policy(arguments.kind, _read_text(arguments.file))
        case "get":
            policy = AdminClient.from_directory(arguments.kbs).get_policy(arguments.kind)
            if arguments.json:
                console.print_value(policy)
            else:
                sys.stdout.write(str(policy.get("text")))
        case _:
            return _lint(arguments.file)
    return 0


def _lint(name: str) -> int:
    """Compiles, and tells which kind of policy it is by the rules it gives."""
    from enclave_cc.owner.policy import appraisal, rego, release

    policy = rego.Policy(name, _read_text(name))
    rules = {appraisal.TRUST_CLAIMS: "attestation", release.ALLOW: "release"}
    found = rego.evaluate(policy, tuple(rules), {}, data={"plugin": "resource", "resource-path": [], "query": {}})
    kinds = [kind for rule, kind in rules.items() if found.values[rule] is not None]
    if not kinds:
        raise UsageError("policy-invalid", f"{name} defines neither allow (release) nor trust_claims (attestation) for every input")
    print(f"{name}: {' and '.join(kinds)} policy, compiles")
    return 0


def _read_text(name: str) -> str:
    try:
        return read_input(name).decode()
    except UnicodeDecodeError as error:
        raise UsageError("policy-invalid", f"{name} is not UTF-8 text") from error
