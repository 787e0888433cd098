"""The KBS under whole RCAR rounds (auth, attest with a real simulated DCAP quote, resource), one server process on one core.

The load comes from a process of its own on another core. No other KBS can be run here or publishes a figure, so there is
no peer beside it, only the aim.

- rate: as many rounds as the server answers; each client keeps its connection, or makes one for every round as a pod does.
- latency: at half of that rate, arriving on time whatever the server does.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench import rcar_load
from bench.memory import proportional_set_size
from bench.report import print_table, verdict
from enclave_cc.__main__ import main as enclave_cc
from enclave_cc.owner.kbs.client import AdminClient
from enclave_cc.owner.reference.values import ReferenceValue
from enclave_cc.simulator.platform import Platform as SimulatedMachine

AIM_RATE = 300.0  # rounds per second and core
AIM_P99 = 0.050  # seconds, at half load
RESOURCES = ("bench/key/1", "bench/key/2", "bench/key/3")
_TICKS = os.sysconf("SC_CLK_TCK")


class Server:
    """`kbs serve` on the first core."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.kbs = directory / "kbs"
        self.machine = SimulatedMachine.create(directory / "simulator")
        self._run("kbs", "init", "--listen", "127.0.0.1:0")
        root, collateral = directory / "root.pem", directory / "collateral.json"
        root.write_text(self.machine.root_certificate_pem())
        collateral.write_bytes(self.machine.collateral(int(time.time())).encode())
        self._run("kbs", "root", "add", "bench", "--certificate", str(root), "--collateral", str(collateral), "--simulated")
        self.process = self._serve()

    def _run(self, *words: str) -> None:
        err = io.StringIO()
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(err):
            if enclave_cc([*words, "--kbs", str(self.kbs)]):
                raise RuntimeError(err.getvalue())

    def _serve(self) -> subprocess.Popen[str]:
        command = ["taskset", "-c", "0", sys.executable, "-m", "enclave_cc", "kbs", "serve", "--kbs", str(self.kbs)]
        with (self.directory / "log").open("ab") as log:
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.search(r"https://([\d.]+):(\d+)", line)
        if found is None:
            raise RuntimeError((self.directory / "log").read_text())
        self.host, self.port = found[1], int(found[2])
        return process

    @property
    def admin(self) -> AdminClient:
        return AdminClient.from_directory(self.kbs)

    def cpu(self) -> float:
        """Seconds of CPU so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS

    def load(self, *, seconds: float, clients: int, kept: bool, rate: float | None = None) -> dict[str, Any]:
        """One run of `rcar_load` on the second core, with the server's CPU seconds meanwhile beside its results."""
        options = {
            "host": self.host,
            "port": self.port,
            "certificate": str(self.kbs / "kbs.crt"),
            "machine": str(self.directory / "simulator"),
            "resources": RESOURCES,
            "seconds": seconds,
            "clients": clients,
            "kept": kept,
            "rate": rate,
        }
        before = self.cpu()
        done = subprocess.run(
            ["taskset", "-c", str((os.cpu_count() or 1) - 1), sys.executable, "-m", "bench.rcar_load"],
            input=json.dumps(options),
            capture_output=True,
            text=True,
            timeout=seconds + 60,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(done.stderr[-2000:])
        return {**json.loads(done.stdout), "server_cpu": self.cpu() - before}

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(20)


@contextmanager
def running() -> Iterator[Server]:
    directory = Path(tempfile.mkdtemp(prefix="ecc-", dir="/tmp"))
    try:
        server = Server(directory)
        try:
            admin = server.admin
            admin.add_reference_values([ReferenceValue("sgx_mr_enclave", rcar_load.MR_ENCLAVE.hex())])
            for path in RESOURCES:
                admin.set_resource(path, path.encode())
            yield server
        finally:
            server.close()
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def quantile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def describe(name: str, result: dict[str, Any]) -> list[object]:
    wholes = [sum(stages) for stages in result["rounds"]]
    rate = len(wholes) / result["seconds"]
    per_core = len(wholes) / result["server_cpu"]
    return [
        name,
        rate,
        per_core,
        *(quantile(wholes, share) * 1e3 for share in (0.5, 0.99)),
        result["server_cpu"] / len(wholes) * 1e3,
    ]


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="bench kbs", description=__doc__)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--clients", type=int, default=16)
    options = parser.parse_args(arguments)
    with running() as server:
        return measure(server, options.seconds, options.clients)


def measure(server: Server, seconds: float, clients: int) -> int:
    server.load(seconds=1, clients=clients, kept=True)  # engines compiled, caches filled
    kept = server.load(seconds=seconds, clients=clients, kept=True)
    new = server.load(seconds=seconds, clients=clients, kept=False)
    half = len(new["rounds"]) / new["seconds"] / 2
    calm = server.load(seconds=seconds, clients=clients * 4, kept=False, rate=half)
    rows = [
        describe("connections kept", kept),
        describe("a connection each round", new),
        describe(f"half load, {half:.0f} rounds/s", calm),
    ]
    print_table(["", "rounds/s", "per core second", "p50 ms", "p99 ms", "server CPU ms"], rows)
    medians = [statistics.median(stage) * 1e3 for stage in zip(*calm["rounds"], strict=True)]
    print("at half load, by request (median ms): " + ", ".join(map("{} {:.2f}".format, rcar_load.STAGES, medians)))
    print(f"memory: {proportional_set_size(Path(f'/proc/{server.process.pid}')) / 1e6:.1f} MB PSS")
    verdict("rounds per second and core, a connection each", float(str(rows[1][2])) / AIM_RATE, 1)
    p99 = quantile([sum(stages) for stages in calm["rounds"]], 0.99)
    verdict("p99 at half load, under the aim", AIM_P99 / p99, 1)
    return 0
