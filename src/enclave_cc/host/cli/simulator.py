"""Make and show the simulated SGX platform. DEVELOPMENT ONLY: it protects nothing from this machine's root.

init        make the platform (keys, certificates); a platform that is there stays as it is
show        say what it is
root        print its root certificate, for an owner who wants to trust it
collateral  print fresh collateral (QuoteCollateralV3 as JSON), valid for 30 days
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from enclave_cc import console
from enclave_cc.simulator.platform import Condition, Platform
from enclave_cc.wire.sgx.collateral import TCB_STATUSES

DEFAULT_STATE = Path("/var/lib/enclave-cc/simulator")
_WARNING = "SIMULATED SGX, NOT Intel: for development only; it protects nothing from root of this machine."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("action", choices=("init", "show", "collateral", "root"))
    parser.add_argument("--state", type=Path, default=DEFAULT_STATE, metavar="DIR", help=f"default: {DEFAULT_STATE}")
    parser.add_argument("--json", action="store_true", help="print JSON")
    tests = parser.add_argument_group("collateral for tests")
    tests.add_argument("--tcb-status", choices=TCB_STATUSES, default="UpToDate", help="judge the platform so")
    tests.add_argument("--advisory", action="append", default=[], metavar="ID", help="name this advisory")
    tests.add_argument("--revoke-pck", action="store_true", help="revoke the platform's PCK certificate")
    tests.add_argument("--at", type=int, metavar="UNIX_TIME", help="issue at this time (default: now)")


def run(arguments: argparse.Namespace) -> int:
    """Carries out one action. Raises `EnvironmentFault` when there is no platform, or none can be made."""
    print(f"enclave-cc: {_WARNING}", file=sys.stderr)
    state: Path = arguments.state.absolute()
    match arguments.action:
        case "init":
            made = not (state / "platform.json").exists()
            _show(Platform.ensure(state), made, as_json=arguments.json)
        case "show":
            _show(Platform.load(state), False, as_json=arguments.json)
        case "root":
            print(Platform.load(state).root_certificate_pem(), end="")
        case _:
            condition = Condition(
                tcb_status=arguments.tcb_status, advisory_ids=tuple(arguments.advisory), pck_revoked=arguments.revoke_pck
            )
            at = int(time.time()) if arguments.at is None else arguments.at
            print(Platform.load(state).collateral(at, condition).encode().decode("ascii"), end="")
    return 0


def _show(platform: Platform, made: bool, *, as_json: bool) -> None:
    described: dict[str, object] = {
        "simulated": True,
        "note": _WARNING,
        "directory": str(platform.directory),
        "made": made,
        "fmspc": platform.fmspc.hex(),
        "ppid": platform.ppid.hex(),
        "cpu_svn": platform.cpu_svn.hex(),
        "pce_svn": platform.pce_svn,
        "qe_isv_svn": platform.qe_isv_svn,
    }
    if as_json:
        console.print_value(described)
        return
    print(f"simulated SGX platform {'made' if made else 'is'} in {platform.directory}")
    for name in ("fmspc", "ppid", "cpu_svn", "pce_svn", "qe_isv_svn"):
        print(f"  {name.replace('_', ' '):<11} {described[name]}")
    print(f"To trust it, an owner names its root:\n  enclave-cc simulator root --state {platform.directory}")
