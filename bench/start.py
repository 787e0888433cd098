"""Time to the workload's first byte of output, image cached, against `runc run` of the unpacked root file system.

Ours starts three containers (pause, agent, app), attests to the KBS over HTTPS, checks the signature, gets the keys
released, hands them over by local attestation and mounts. runc starts one process. Both are timed from the command's
start to the first byte that the workload writes.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import testbed as testbeds
from bench.report import print_table

MESSAGE = "first"


def first_byte(command: list[str], environment: dict[str, str] | None = None, cwd: Path | None = None) -> float:
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, cwd=cwd)
    assert process.stdout is not None and process.stderr is not None
    got = os.read(process.stdout.fileno(), 1)
    took = time.perf_counter() - began
    _, err = process.communicate()
    if got != MESSAGE[:1].encode() or process.returncode:
        raise RuntimeError(f"{command} exited with {process.returncode}: {err.decode()[-500:]}")
    return took


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="bench start", description=__doc__)
    parser.add_argument("--repeat", type=int, default=15)
    options = parser.parse_args(arguments)
    directory = Path(tempfile.mkdtemp(prefix="ecc-", dir="/tmp"))
    try:
        with testbeds.running(directory / "s") as testbed:
            return compare(testbed, directory, options.repeat)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def compare(testbed: testbeds.Testbed, directory: Path, repeat: int) -> int:
    root = testbeds.busybox_root(directory / "root")
    source = testbeds.make_image(directory / "layout", "start", root, "--config.cmd", "echo", "--config.cmd", MESSAGE)
    image = testbed.publish(source, "start")
    bundle = directory / "runc"
    subprocess.run(["umoci", "--log", "error", "unpack", "--image", source, str(bundle)], check=True)
    configuration = json.loads((bundle / "config.json").read_text())
    configuration["process"]["terminal"] = False
    configuration["process"].pop("rlimits", None)
    (bundle / "config.json").write_text(json.dumps(configuration))
    ours, theirs, stages = [], [], []
    timings = directory / "timings.json"
    for number in range(repeat + 1):
        took = first_byte(
            [str(testbeds.ENCLAVE_CC), "run", "--rm", "--quiet", "--timings", str(timings), image], testbed.environment
        )
        peer = first_byte(["runc", "run", f"bench{number}"], cwd=bundle)
        if number:  # the first run fills the cache
            ours.append(took)
            theirs.append(peer)
            stages.append(json.loads(timings.read_text()))
    rows = [
        [name, statistics.median(values) * 1e3, min(values) * 1e3, max(values) * 1e3]
        for name, values in (("enclave-cc run", ours), ("runc run", theirs))
    ]
    print_table([f"ms, {repeat} runs", "median", "min", "max"], rows)
    ratio = statistics.median(ours) / statistics.median(theirs)
    print("\nsplit by stage (median, ms after the command began):")
    for stage in stages[0]:
        print(f"  {stage:<24} {statistics.median(s[stage] for s in stages if stage in s) * 1e3:7.1f}")
    median = statistics.median(ours)
    print(f"\ncached start: {median:.3f} s, aim 1 s: {'reached' if median <= 1 else 'missed'}")
    print(f"against runc: {ratio:.1f}x, aim at most 4x: {'reached' if ratio <= 4 else f'over by a factor of {ratio / 4:.2f}'}")
    return 0
