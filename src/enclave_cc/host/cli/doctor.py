"""Tell what this machine lacks for running pods, and how to get it."""

from __future__ import annotations

import argparse
from dataclasses import asdict

from enclave_cc import console
from enclave_cc.errors import TABLE
from enclave_cc.host.cli import options
from enclave_cc.host.install import inspection
from enclave_cc.host.sandbox import doctor


def add_arguments(parser: argparse.ArgumentParser) -> None:
    options.add_common(parser)


def run(arguments: argparse.Namespace) -> int:
    settings = options.load(arguments)
    findings = [*doctor.examine(settings), inspection.examine(settings)]
    rows = [{**asdict(finding), "verdict": str(finding.verdict)} for finding in findings]
    console.print_rows(rows, ("check", "verdict", "what", "fix"), as_json=arguments.json)
    lacking = any(finding.verdict is doctor.Verdict.MISSING for finding in findings)
    return TABLE["environment"].exit if lacking else 0
