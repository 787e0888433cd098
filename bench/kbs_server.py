"""A KBS to measure: `kbs serve` of a directory and a database, on given cores, and the load for it on the last one."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from bench import rcar_load
from bench.memory import proportional_set_size
from enclave_cc.__main__ import main as enclave_cc
from enclave_cc.owner.kbs.client import AdminClient
from enclave_cc.owner.reference.values import ReferenceValue
from enclave_cc.simulator.platform import Platform as SimulatedMachine

_TICKS = os.sysconf("SC_CLK_TCK")
PATHS = tuple(f"bench/key/{number}" for number in range(3))


class Site:
    """A simulated machine and KBS directories that trust it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.machine = SimulatedMachine.create(directory / "simulator")
        (directory / "root.pem").write_text(self.machine.root_certificate_pem())
        (directory / "collateral.json").write_bytes(self.machine.collateral(int(time.time())).encode())

    def make(self, name: str, database: str | None = None) -> Path:
        """A KBS directory whose database has the roots, the reference value and `PATHS`."""
        kbs = self.directory / name
        run(kbs, "kbs", "init", "--listen", "127.0.0.1:0", *(() if database is None else ("--database", database)))
        run(kbs, "kbs", "migrate")
        root, collateral = str(self.directory / "root.pem"), str(self.directory / "collateral.json")
        run(kbs, "kbs", "root", "add", "bench", "--certificate", root, "--collateral", collateral, "--simulated")
        with contextlib.closing(Server(self, kbs)):
            admin = AdminClient.from_directory(kbs)
            admin.add_reference_values([ReferenceValue("sgx_mr_enclave", rcar_load.MR_ENCLAVE.hex())])
            for path in PATHS:
                admin.set_resource(path, path.encode())
        return kbs

    def twin(self, kbs: Path, name: str, database: str) -> Path:
        """The same directory, with its keys, before another database."""
        other = self.directory / name
        shutil.copytree(kbs, other, ignore=lambda _, names: [each for each in names if each.startswith("kbs.db")])
        settings = other / "kbs.toml"
        settings.write_text(re.sub(r'(?m)^url = "[^"]*"', f'url = "{database}"', settings.read_text(), count=1))
        run(other, "kbs", "migrate")
        return other


def run(kbs: Path, *words: str) -> None:
    err = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(err):
        if enclave_cc([*words, "--kbs", str(kbs)]):
            raise RuntimeError(err.getvalue())


class Server:
    """`kbs serve` with one process on the first core, or with several on all."""

    def __init__(self, site: Site, kbs: Path, *, workers: int = 1) -> None:
        self.site = site
        self.kbs = kbs
        cores = "0" if workers == 1 else f"0-{(os.cpu_count() or 1) - 1}"
        command = ["taskset", "-c", cores, sys.executable, "-m", "enclave_cc", "kbs", "serve"]
        command += ["--kbs", str(kbs), "--workers", str(workers)]
        log_path = kbs.with_suffix(".log")
        began = time.monotonic()
        with log_path.open("ab") as log:
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        self.started = time.monotonic() - began
        found = re.search(r"https://([\d.]+):(\d+)", line)
        if found is None:
            raise RuntimeError(log_path.read_text()[-2000:])
        self.host, self.port = found[1], int(found[2])

    @property
    def pids(self) -> list[int]:
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return [self.process.pid, *map(int, children)]

    def cpu(self) -> float:
        """Seconds of CPU so far, of all its processes."""
        return sum(map(cpu_of, self.pids))

    def memory(self) -> float:
        """MB of PSS, of all its processes."""
        return sum(proportional_set_size(Path(f"/proc/{pid}")) for pid in self.pids) / 1e6

    def load(
        self, *, seconds: float, clients: int = 16, kept: bool = True, rate: float | None = None, paths: tuple[str, ...] = PATHS
    ) -> dict[str, Any]:
        """One run of `rcar_load` on the last core, with the server's CPU seconds meanwhile beside its results."""
        options = {
            "host": self.host,
            "port": self.port,
            "certificate": str(self.kbs / "kbs.crt"),
            "machine": str(self.site.directory / "simulator"),
            "resources": paths,
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
        self.process.wait(60)
        assert self.process.stdout is not None
        self.process.stdout.close()


def cpu_of(pid: int) -> float:
    """Seconds of CPU of a process so far (proc(5))."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS
