"""Tell what is probably wrong with policies, with lines: mistyped claims, conditions that never hold, old syntax.

Needs no KBS; with --kbs the reference values that a policy asks for are looked up there. Exit code 19 if anything is an
error, 0 for warnings alone.
"""

from __future__ import annotations

import argparse

from enclave_cc import console
from enclave_cc.errors import TABLE
from enclave_cc.owner.cli.policy_files import read_policy
from enclave_cc.owner.policy import lint


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", metavar="FILE", nargs="+", help="Rego; - for standard input")
    parser.add_argument("--kind", choices=(lint.RELEASE, lint.ATTESTATION), help="default: by the rules it has")
    parser.add_argument("--kbs", metavar="DIR", help="also look up the reference values that it asks for")
    parser.add_argument("--json", action="store_true")


def run(arguments: argparse.Namespace) -> int:
    known = None
    if arguments.kbs is not None:
        from enclave_cc.owner.kbs.client import AdminClient

        known = {value.name for value in AdminClient.from_directory(arguments.kbs).list_reference_values()}
    reports = [lint.lint(name, read_policy(name), kind=arguments.kind, known_names=known) for name in arguments.files]
    if arguments.json:
        console.print_value(
            [
                {"file": report.name, "kind": report.kind, "findings": [finding.to_json() for finding in report.findings]}
                for report in reports
            ]
        )
    else:
        for report in reports:
            _print_report(report)
    return TABLE["policy-invalid"].exit if any(report.errors for report in reports) else 0


def _print_report(report: lint.Report) -> None:
    for finding in report.findings:
        hint = f"; did you mean {finding.suggestion}?" if finding.suggestion else ""
        print(f"{report.name}:{finding.line}: {finding.severity} {finding.check}: {finding.message}{hint}")
    warnings = len(report.findings) - report.errors
    kind = f"{report.kind} policy" if report.kind is not None else "policy"
    if not report.findings:
        print(f"{report.name}: {kind}, compiles, nothing to say")
    elif not report.errors:
        print(f"{report.name}: {kind}, compiles, {warnings} warning{'s' if warnings > 1 else ''}")
