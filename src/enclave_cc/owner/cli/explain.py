"""Explain a decision of the KBS by the id that a refusal shows: the whole tree of reasons. Without an id, list denials."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from enclave_cc import console
from enclave_cc.owner.kbs.client import AdminClient
from enclave_cc.owner.kbs.directory import DIRECTORY_HELP


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("id", metavar="ID", nargs="?")
    parser.add_argument("--all", action="store_true", help="list what was allowed, too")
    parser.add_argument("--limit", type=int, default=20, metavar="N", help="list the newest N (default %(default)s)")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--kbs", metavar="DIR", help=f"KBS directory; {DIRECTORY_HELP}")


def run(arguments: argparse.Namespace) -> int:
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
        _print_decision(decision)
    return 0


def _print_decision(decision: Mapping[str, Any]) -> None:
    what = decision.get("resource") or f"attestation of {decision.get('tee')}"
    print(f"{decision['outcome']} {what} at {_show_time(decision['at'])}, code {decision.get('code') or '-'}")
    for attester in decision.get("attester") or decision.get("evidence") or ():
        print("  attester " + ", ".join(f"{name} {value}" for name, value in attester.items()))
    for reason in decision.get("reasons") or ():
        _print_reason(reason, "  ")


def _print_reason(reason: Mapping[str, Any], indent: str) -> None:
    print(f"{indent}{reason['claim']}: found {_show(reason['found'])}, expected {_show(reason['expected'])}")
    print(f"{indent}  by {reason['rule']}")
    for name in ("nearest", "advice"):
        if reason.get(name):
            print(f"{indent}  {name}: {_show(reason[name])}")
    for inner in reason.get("because") or ():
        _print_reason(inner, indent + "  ")


def _show(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)


def _show_time(at: int) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
