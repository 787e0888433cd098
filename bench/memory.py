"""Memory per pod by process (PSS: shared pages counted in proportion), with many pods idle at once."""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import testbed as testbeds
from bench.report import print_table

ROLES = {
    "agent": "enclave_cc.enclave.agent",
    "boot init": "enclave_cc.enclave.boot",
    "supervisor": "enclave-cc run",
    "pause": "pause",
    "workload": "sleep 300",
}


def proportional_set_size(pid: Path) -> int:
    """Bytes of PSS by /proc/PID/smaps_rollup (proc(5))."""
    for line in (pid / "smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    return 0


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="bench memory", description=__doc__)
    parser.add_argument("--pods", type=int, default=10)
    options = parser.parse_args(arguments)
    directory = Path(tempfile.mkdtemp(prefix="ecc-", dir="/tmp"))
    try:
        with testbeds.running(directory / "s") as testbed:
            return measure(testbed, directory, options.pods)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def measure(testbed: testbeds.Testbed, directory: Path, pods: int) -> int:
    root = testbeds.busybox_root(directory / "root")
    image = testbed.publish(
        testbeds.make_image(directory / "layout", "idle", root, "--config.cmd", "sleep", "--config.cmd", "300"), "idle"
    )
    for _ in range(pods):
        testbed.cli("run", "-d", image)
    time.sleep(2)
    by_role: dict[str, list[int]] = defaultdict(list)
    for pid in Path("/proc").glob("[0-9]*"):
        try:
            line = (pid / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            role = next((role for role, word in ROLES.items() if word in line), None)
            if role is not None:
                by_role[role].append(proportional_set_size(pid))
        except (OSError, StopIteration):
            continue
    rows = [
        [role, len(by_role[role]), sum(by_role[role]) / pods / 1e6, max(by_role[role], default=0) / 1e6]
        for role in ROLES
        if by_role[role]
    ]
    rows.append(["all", sum(len(v) for v in by_role.values()), sum(sum(v) for v in by_role.values()) / pods / 1e6, ""])
    print_table([f"{pods} pods", "processes", "MB PSS per pod", "largest MB"], rows)
    both = (sum(by_role["agent"]) + sum(by_role["boot init"])) / pods / 1e6
    print(f"agent + boot init: {both:.1f} MB PSS per pod, aim under 100 MB: {'reached' if both < 100 else 'missed'}")
    return 0
