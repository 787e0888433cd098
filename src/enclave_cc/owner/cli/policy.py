"""Set, read, activate and compare policies. POLICY is `release` (who gets a resource), `attestation` (how evidence is
judged), or an id: `resource-policy/REPO[/TYPE[/TAG]]` decides for the paths below, the most specific one alone.

Every version is kept. `policy lint`, `policy test` and `policy replay` tell what a policy would do before it is activated.
"""

from __future__ import annotations

import argparse
import difflib
import sys
from datetime import UTC, datetime

from enclave_cc import console
from enclave_cc.errors import UsageError
from enclave_cc.owner.cli.policy_files import read_policy
from enclave_cc.owner.kbs.client import AdminClient
from enclave_cc.owner.kbs.directory import DIRECTORY_HELP
from enclave_cc.owner.policy import lint


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    put = actions.add_parser("set", help="store a new version and activate it; nothing changes if it does not compile")
    put.add_argument("policy", metavar="POLICY")
    put.add_argument("file", metavar="FILE", help="Rego; - for standard input")
    put.add_argument("--draft", action="store_true", help="do not activate it")
    put.add_argument("--note", default="", metavar="TEXT", help="why, for the history")
    get = actions.add_parser("get", help="print the active version")
    get.add_argument("policy", metavar="POLICY", help="of another version: POLICY=VERSION")
    get.add_argument("--json", action="store_true", help="with id, version and digest")
    listing = actions.add_parser("ls", help="list policies and their active versions")
    listing.add_argument("--json", action="store_true")
    history = actions.add_parser("history", help="list a policy's versions: by whom, when active")
    history.add_argument("policy", metavar="POLICY")
    history.add_argument("--json", action="store_true")
    diff = actions.add_parser("diff", help="compare two versions, or the active one with a file; exit code 1 if they differ")
    diff.add_argument("policy", metavar="POLICY", help="the active version, or POLICY=VERSION")
    diff.add_argument("other", metavar="VERSION|FILE", help="a version of it, or a Rego file")
    activate = actions.add_parser("activate", help="make versions the active ones, all at once or none")
    activate.add_argument("policies", metavar="POLICY[=VERSION]", nargs="+", help="without VERSION, the newest")
    rollback = actions.add_parser("rollback", help="take a policy's last switch back")
    rollback.add_argument("policy", metavar="POLICY")
    remove = actions.add_parser("rm", help="end a path's own policy; its versions are kept")
    remove.add_argument("policy", metavar="POLICY")
    for action in (put, get, listing, history, diff, activate, rollback, remove):
        action.add_argument("--kbs", metavar="DIR", help=f"KBS directory; {DIRECTORY_HELP}")


def run(arguments: argparse.Namespace) -> int:
    match arguments.action:
        case "set":
            _set(arguments)
        case "get":
            _get(arguments)
        case "ls":
            _list(arguments)
        case "history":
            _show_history(arguments)
        case "diff":
            return _diff(arguments)
        case "activate":
            wanted = dict(_split(name) for name in arguments.policies)
            _tell_active(_client(arguments).activate_policies(wanted))
        case "rollback":
            _tell_active(_client(arguments).roll_back_policy(arguments.policy))
        case _:
            _client(arguments).deactivate_policy(arguments.policy)
    return 0


def _client(arguments: argparse.Namespace) -> AdminClient:
    return AdminClient.from_directory(arguments.kbs)


def _set(arguments: argparse.Namespace) -> None:
    text = read_policy(arguments.file)
    made = _client(arguments).set_policy(arguments.policy, text, draft=arguments.draft, note=arguments.note)
    for finding in lint.lint(arguments.file, text).findings:  # it compiles, and may still never allow anything
        print(f"{arguments.file}:{finding.line}: {finding.severity} {finding.check}: {finding.message}", file=sys.stderr)
    name = f"{made['id']}={made['version']}"
    if arguments.draft:
        print(f"{name} is a draft; activate it with: enclave-cc policy activate {name}")
    else:
        print(f"{name} is active")


def _get(arguments: argparse.Namespace) -> None:
    policy = _client(arguments).get_policy(*_split(arguments.policy))
    if arguments.json:
        console.print_value(policy)
    else:
        sys.stdout.write(str(policy.get("text")))


def _list(arguments: argparse.Namespace) -> None:
    rows = _client(arguments).list_policies()
    if not arguments.json:
        for row in rows:
            row["activated"] = _show_time(row["activated"])
            row["drafts"] = row["newest"] if row["newest"] != row["version"] else None
    console.print_rows(rows, ("id", "version", "newest", "activated", "activated_by"), as_json=arguments.json)


def _show_history(arguments: argparse.Namespace) -> None:
    rows = _client(arguments).list_policy_versions(arguments.policy)
    if not arguments.json:
        for row in rows:
            row["created"] = _show_time(row["created"])
            row["state"] = "active" if row["active"] else "was active" if row["activations"] else "draft"
            row["activated"] = [f"{_show_time(each['at'])} by {each['by'] or '?'}" for each in row["activations"]] or None
    console.print_rows(rows, ("version", "state", "created", "author", "activated", "note"), as_json=arguments.json)


def _diff(arguments: argparse.Namespace) -> int:
    client = _client(arguments)
    name, version = _split(arguments.policy)
    old = client.get_policy(name, version)
    if arguments.other.isdecimal():
        other = client.get_policy(name, int(arguments.other))
        label, text = f"{other['id']}={other['version']}", str(other["text"])
    else:
        label, text = arguments.other, read_policy(arguments.other)
    lines = list(
        difflib.unified_diff(
            str(old["text"]).splitlines(keepends=True),
            text.splitlines(keepends=True),
            f"{old['id']}={old['version']}",
            label,
        )
    )
    for line in lines:
        sys.stdout.write(line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n")
    return 1 if lines else 0


def _tell_active(active: dict[str, int]) -> None:
    for name, version in sorted(active.items()):
        print(f"{name}={version} is active")


def _split(text: str) -> tuple[str, int | None]:
    """(POLICY, VERSION) of POLICY[=VERSION]."""
    name, separator, version = text.partition("=")
    if separator and (not version.isdecimal() or len(version) > 9):
        raise UsageError("usage", f"{version!r} is no version", "Write POLICY=VERSION; see `enclave-cc policy history`.")
    return name, int(version) if separator else None


def _show_time(at: int | None) -> str | None:
    return None if at is None else datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
