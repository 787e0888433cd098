"""Explain a decision of the KBS by the id that a refusal shows: the whole tree of reasons. Without an id, list denials."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from enclave_cc import console
from enclave_cc.errors import UsageError
from enclave_cc.owner.kbs.client import AdminClient
from enclave_cc.owner.kbs.directory import DIRECTORY_HELP
from enclave_cc.owner.reference import values
from enclave_cc.owner.reference.values import ReferenceValue

LIST_LIMIT = 10_000  # what the KBS answers at once


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("id", metavar="ID", nargs="?")
    parser.add_argument("--all", action="store_true", help="list what was allowed, too")
    parser.add_argument("--limit", type=int, default=20, metavar="N", help="list the newest N (default %(default)s)")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--kbs", metavar="DIR", help=f"KBS directory; {DIRECTORY_HELP}")


def run(arguments: argparse.Namespace) -> int:
    if not 1 <= arguments.limit <= LIST_LIMIT:
        raise UsageError("usage", f"--limit is 1 to {LIST_LIMIT}")
    client = AdminClient.from_directory(arguments.kbs)
    if arguments.id is None:
        rows = client.list_decisions(outcome=None if arguments.all else "deny", limit=arguments.limit)
        if not arguments.json:
            for row in rows:
                row["at"] = _show_time(row["at"])
        console.print_rows(rows, ("id", "at", "outcome", "stage", "code", "resource"), as_json=arguments.json)
        return 0
    decision = client.explain(arguments.id)
    if arguments.json:
        console.print_value(decision)
    else:
        _print_decision(decision, _describe_known(client.list_reference_values()))
    return 0


def _describe_known(known: Sequence[ReferenceValue]) -> dict[str, str]:
    """Measurements that the owner has named, in words."""
    described = {}
    for entry in known:
        if isinstance(entry.value, str):
            words = values.describe(entry.source) or entry.name
            if entry.expires is not None and entry.expires <= time.time():
                words += f"; EXPIRED {_show_time(entry.expires)}"
            described[entry.value] = words
    return described


def _print_decision(decision: Mapping[str, Any], known: Mapping[str, str]) -> None:
    what = decision.get("resource") or f"attestation of {decision.get('tee')}"
    if decision["stage"] == "admin":
        what = "administration"
    verb = {"deny": "denied", "allow": "allowed"}.get(decision["outcome"], decision["outcome"])
    code = f" ({decision['code']})" if decision.get("code") else ""
    print(f"{verb} {what} at {_show_time(decision['at'])}{code}")
    for attester in decision.get("attester") or decision.get("evidence") or ():
        shown = {name: value for name, value in attester.items() if name != "name" and value is not None}
        print(
            f"  to {attester.get('name', 'an attester')}: " + ", ".join(f"{name} {_show(value)}" for name, value in shown.items())
        )
    if decision.get("audit") is not None:
        print(f"  entry {decision['audit']} of the audit log; enclave-cc kbs audit prove {decision['audit']}")
    for reason in decision.get("reasons") or ():
        print_reason(reason, "  ", known)


def print_reason(reason: Mapping[str, Any], indent: str, known: Mapping[str, str]) -> None:
    """One reason and what lies behind it; `known`: what the owner's values are, in words."""
    print(f"{indent}{reason['claim']}")
    expected = reason["expected"]
    found = [reason["found"]]
    for label, items in (("found", found), ("expected", expected if isinstance(expected, list) else [expected])):
        for number, item in enumerate(items):
            words = known.get(item) if isinstance(item, str) else None
            begin = label if number == 0 else "or"
            print(f"{indent}  {begin:<9} {_show(item)}" + (f"  ({words})" if words else ""))
        if not items:
            print(f"{indent}  {label:<9} (nothing is named)")
    place = reason.get("place") or {}
    where = f"  ({place['policy']}={place['version']}, line {place['line']})" if "line" in place else ""
    print(f"{indent}  {'rule':<9} {reason['rule']}{where}")
    if reason.get("nearest"):
        print(f"{indent}  {'nearest':<9} {_show_nearest(reason['nearest'], known)}")
    if reason.get("advice"):
        print(f"{indent}  {'to do':<9} {reason['advice']}")
    if reason.get("command"):
        print(f"{indent}  {'command':<9} {reason['command']}")
    for inner in reason.get("because") or ():
        print_reason(inner, indent + "  ", known)


def _show_nearest(nearest: object, known: Mapping[str, str]) -> str:
    if not isinstance(nearest, Mapping):
        return _show(nearest)
    if "how" not in nearest:
        return ", ".join(f"{name} {_show(value)}" for name, value in nearest.items())
    words = values.describe(nearest.get("source") or {}) or known.get(str(nearest.get("value")), "")
    return f"{nearest['how']}: {_show(nearest.get('value'))}" + (f" ({words})" if words else "")


def _show(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)


def _show_time(at: int) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
