"""Tell what would change if other policies or reference values were active, or at a later date, before it is so.

The KBS judges once more what it has recorded; nothing is activated. With --at or --collateral, quotes are verified again
at that time: what a TCB recovery or collateral that expires will do. Without any other rule, what was decided then is
compared with what would be decided now.

Exit code 0 if nothing changes, 1 if something does.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from enclave_cc import console
from enclave_cc.errors import UsageError
from enclave_cc.owner.cli.explain import print_reason
from enclave_cc.owner.cli.policy_files import read_policy
from enclave_cc.owner.cli.resource import read_input
from enclave_cc.owner.kbs.client import AdminClient, policy_id
from enclave_cc.owner.kbs.directory import DIRECTORY_HELP

_DEADLINE = 300.0
_PAGE = 100


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--policy", action="append", default=[], metavar="POLICY=FILE", help="release, attestation or an id")
    parser.add_argument("--refvals", metavar="FILE", help="instead of the KBS's reference values: JSON of `refvals ls --json`")
    parser.add_argument("--retire", action="append", default=[], metavar="NAME[=VALUE]", help="without this value; repeatable")
    parser.add_argument("--at", metavar="TIME", help="verify quotes again, at this time: seconds, a date, or RFC 3339")
    parser.add_argument("--collateral", action="append", default=[], metavar="FILE", help="verify quotes again, with this")
    parser.add_argument("--since", metavar="TIME", help="only what was recorded since")
    parser.add_argument("--recording", type=Path, metavar="FILE", help="judge an export here, without a KBS")
    parser.add_argument("--export", type=Path, metavar="FILE", help="write recordings and rules to FILE, judge nothing")
    parser.add_argument("-v", "--verbose", action="store_true", help="with the reasons of what would be denied")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--kbs", metavar="DIR", help=f"KBS directory; {DIRECTORY_HELP}")


def run(arguments: argparse.Namespace) -> int:
    request = _make_request(arguments)
    if arguments.export is not None:
        from enclave_cc.owner.kbs import recording_file

        client = AdminClient.from_directory(arguments.kbs)
        print(
            f"{recording_file.export(client, arguments.export, since=request.get('since') or 0)} recordings in {arguments.export}"
        )
        return 0
    report = _replay_file(arguments.recording, request) if arguments.recording is not None else _replay_kbs(arguments.kbs, request)
    if arguments.json:
        console.print_value(report)
    else:
        _print(report, verbose=arguments.verbose)
    return 1 if report["changes"] else 0


def _make_request(arguments: argparse.Namespace) -> dict[str, Any]:
    request: dict[str, Any] = {}
    policies = {}
    for text in arguments.policy:
        name, separator, file = text.partition("=")
        if not separator:
            raise UsageError("usage", f"--policy {text} names no file", "Write --policy POLICY=FILE.")
        policies[policy_id(name)] = read_policy(file)
    if policies:
        request["policies"] = policies
    if arguments.refvals is not None:
        try:
            values = json.loads(read_input(arguments.refvals))
        except ValueError as error:
            raise UsageError(
                "usage", f"{arguments.refvals} is not JSON", "Write it with `enclave-cc refvals ls --json`."
            ) from error
        request["reference_values"] = values
    if arguments.retire:
        request["retire"] = [_split_value(text) for text in arguments.retire]
    if arguments.collateral:
        request["collateral"] = [read_input(name).decode("utf-8", "replace") for name in arguments.collateral]
    for name in ("at", "since"):
        if getattr(arguments, name) is not None:
            request[name] = _parse_time(getattr(arguments, name))
    return request


def _replay_kbs(directory: str | None, request: Mapping[str, Any]) -> dict[str, Any]:
    from enclave_cc.owner.kbs.replay import Change, merge

    client = AdminClient.from_directory(directory, deadline=_DEADLINE)
    changes: list[Change] = []
    report: dict[str, Any] = {"judged": 0, "skipped": 0}
    after: int | None = 0
    while after is not None:
        page = client.replay({**request, "after": after, "limit": _PAGE})
        changes += [Change(**{**item, "reasons": tuple(item["reasons"])}) for item in page["changes"]]
        for name in ("judged", "skipped"):
            report[name] += int(page[name])
        after = page["next"]
    return {**report, "changes": [change.to_json() for change in merge(changes)]}


def _replay_file(path: Path, request: Mapping[str, Any]) -> dict[str, Any]:
    from enclave_cc.owner.kbs.recording_file import RecordingFile
    from enclave_cc.owner.kbs.replay import merge

    replay = RecordingFile(path).replay(request, time.time())
    changes = [change.to_json() for change in merge(list(replay.changes.values()))]
    return {"judged": replay.judged, "skipped": replay.skipped, "changes": changes}


def _print(report: Mapping[str, Any], *, verbose: bool) -> None:
    changes: Sequence[Mapping[str, Any]] = report["changes"]
    if changes:
        rows = [
            {
                "count": change["count"],
                "stage": change["stage"],
                "what": change["what"],
                "change": f"{change['before']} -> {change['after']}" + (f" ({change['code']})" if change["code"] else ""),
                "last": datetime.fromtimestamp(change["last"], UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
                "example": change["example"],
            }
            for change in changes
        ]
        console.print_rows(rows, ("count", "stage", "what", "change", "last", "example"), as_json=False)
        for change in changes if verbose else ():
            if change["reasons"]:
                print(f"\n{change['stage']} of {change['what']}: {change['before']} -> {change['after']}")
            for reason in change["reasons"]:
                print_reason(reason, "  ", {})
    total = sum(change["count"] for change in changes)
    skipped = f", {report['skipped']} without their attestation left out" if report["skipped"] else ""
    print(f"{report['judged']} judged{skipped}: {total} would change")


def _split_value(text: str) -> dict[str, object]:
    name, separator, value = text.partition("=")
    if not separator:
        return {"name": name, "value": None}
    try:
        parsed = json.loads(value)
    except ValueError:
        parsed = value
    # A measurement may be all digits, which JSON takes for a number.
    return {"name": name, "value": value if isinstance(parsed, int | float) and len(value) == 64 else parsed}


def _parse_time(text: str) -> int:
    if text.isdecimal() and len(text) < 13:
        return int(text)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise UsageError("usage", f"{text!r} is neither seconds nor a date nor an RFC 3339 time") from error
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())
