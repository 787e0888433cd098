"""The KBS under whole RCAR rounds (auth, attest with a real simulated DCAP quote, resource), on SQLite and on PostgreSQL.

The load comes from a process of its own on the last core; a KBS of one process has the first one. No other KBS can be run
here or publishes a figure, so there is no peer beside it, only the aim.

- rate: as many rounds as the server answers; each client keeps its connection, or makes one for every round as a pod does.
- latency: at half of that rate, arriving on time whatever the server does.
- stages: CPU of one round in one process, one request after another; what HTTP, TLS and threads add is the difference.
- growth: the same with many resources and a long audit log.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench import kbs_fill, kbs_stages, rcar_load
from bench.kbs_server import PATHS, Server, Site, cpu_of
from bench.report import print_table, verdict
from private_postgresql import PrivatePostgresql

AIM_RATE = 300.0  # rounds per second and core
AIM_P99 = 0.050  # seconds, at half load
COLUMNS = ["", "rounds/s", "per core second", "p50 ms", "p99 ms", "CPU ms"]


@contextmanager
def running() -> Iterator[tuple[Site, PrivatePostgresql]]:
    directory = Path(tempfile.mkdtemp(prefix="ecc-", dir="/tmp"))
    server = None
    try:
        server = PrivatePostgresql()
        server.start()
        yield Site(directory), server
    finally:
        if server is not None:
            server.stop()
        shutil.rmtree(directory, ignore_errors=True)


def quantile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def wholes(result: dict[str, Any]) -> list[float]:
    return [sum(stages) for stages in result["rounds"]]


def describe(name: str, result: dict[str, Any]) -> list[object]:
    rounds = wholes(result)
    per_core = len(rounds) / result["server_cpu"]
    latencies = (quantile(rounds, share) * 1e3 for share in (0.5, 0.99))
    return [name, len(rounds) / result["seconds"], per_core, *latencies, result["server_cpu"] / len(rounds) * 1e3]


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="bench kbs", description=__doc__)
    parser.add_argument("--seconds", type=float, default=6.0, help="of each load")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=500, help="for the table of stages")
    parser.add_argument("--resources", type=int, default=100_000)
    parser.add_argument("--entries", type=int, default=1_000_000, help="of the audit log")
    options = parser.parse_args(arguments)
    with running() as (site, postgresql):
        names = [postgresql.create_database() for _ in range(2)]
        kinds = {"SQLite": site.make("sqlite"), "PostgreSQL": site.make("postgresql", postgresql.url(names[0]))}
        costs = {name: measure(Server(site, kbs), name, options, database=postgresql) for name, kbs in kinds.items()}
        show_stages(site, kinds, costs, options.rounds)
        show_workers(site, kinds, options)
        show_growth(site, kinds, postgresql, names[1], options)
    return 0


def measure(server: Server, name: str, options: argparse.Namespace, *, database: PrivatePostgresql) -> tuple[float, float]:
    """CPU milliseconds of a round, with a connection kept and with one each."""
    seconds, clients = options.seconds, options.clients
    with contextlib.closing(server):
        server.load(seconds=1, clients=clients)  # engines compiled, caches filled
        before = cpu_of_server(database)
        kept = server.load(seconds=seconds, clients=clients)
        beside = (cpu_of_server(database) - before) / len(kept["rounds"]) * 1e3
        new = server.load(seconds=seconds, clients=clients, kept=False)
        half = len(new["rounds"]) / new["seconds"] / 2
        calm = server.load(seconds=seconds, clients=clients * 4, kept=False, rate=half)
        memory = server.memory()
    rows = [describe("connections kept", kept), describe("a connection each round", new)]
    rows.append(describe(f"half load, {half:.0f} rounds/s", calm))
    print(f"\n{name}, one process")
    print_table(COLUMNS, rows)
    medians = [statistics.median(stage) * 1e3 for stage in zip(*calm["rounds"], strict=True)]
    print("at half load, by request (median ms): " + ", ".join(map("{} {:.2f}".format, rcar_load.STAGES, medians)))
    print(f"memory: {memory:.1f} MB PSS" + (f"; PostgreSQL's own CPU: {beside:.2f} ms a round" if name == "PostgreSQL" else ""))
    verdict(f"{name}: rounds per second and core, a connection each", float(str(rows[1][2])) / AIM_RATE, 1)
    verdict(f"{name}: p99 at half load, under the aim", AIM_P99 / quantile(wholes(calm), 0.99), 1)
    return float(str(rows[0][5])), float(str(rows[1][5]))


def cpu_of_server(database: PrivatePostgresql) -> float:
    assert database.process is not None
    pid = database.process.pid
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    total = cpu_of(pid)
    for child in children:
        with contextlib.suppress(OSError):
            total += cpu_of(int(child))
    return total


def show_stages(site: Site, kinds: dict[str, Path], costs: dict[str, tuple[float, float]], rounds: int) -> None:
    stages = {name: kbs_stages.measure(kbs, site.machine, rounds) for name, kbs in kinds.items()}
    rows: list[list[object]] = [
        [title, *(each.get(key, 0.0) for each in stages.values())] for key, title in kbs_stages.TITLES.items()
    ]
    rows.append(["together", *(sum(each.values()) for each in stages.values())])
    rows.append(["HTTP, TLS records, threads", *(costs[name][0] - sum(each.values()) for name, each in stages.items())])
    rows.append(["a connection: TCP, TLS handshake", *(costs[name][1] - costs[name][0] for name in stages)])
    print("\nCPU ms of a round, by stage")
    print_table(["", *stages], rows)


def show_workers(site: Site, kinds: dict[str, Path], options: argparse.Namespace) -> None:
    rows = []
    for name, kbs in kinds.items():
        for workers in (1, 2):
            with contextlib.closing(Server(site, kbs, workers=workers)) as server:
                server.load(seconds=1, clients=options.clients)
                rows.append(
                    describe(f"{name}, {workers}", server.load(seconds=options.seconds, clients=options.clients, kept=False))
                )
    print(f"\nprocesses, a connection each round (the load takes one of {os.cpu_count()} cores for itself)")
    print_table(COLUMNS, rows)


def show_growth(site: Site, kinds: dict[str, Path], postgresql: PrivatePostgresql, name: str, options: argparse.Namespace) -> None:
    """SQLite is filled by the stores' own code; PostgreSQL gets a copy of it, and the same keys."""
    rows = [measure_size(Server(site, kbs), kind, PATHS, options) for kind, kbs in kinds.items()]
    began = time.monotonic()
    kbs_fill.fill(kinds["SQLite"], resources=options.resources, entries=options.entries)
    filled = time.monotonic() - began
    twin = site.twin(kinds["SQLite"], "twin", postgresql.url(name))
    kbs_fill.copy(kinds["SQLite"] / "kbs.db", postgresql.url(name))
    paths = tuple(map(kbs_fill.name_path, range(0, options.resources, max(1, options.resources // 100)))) or PATHS
    for kind, kbs in {"SQLite": kinds["SQLite"], "PostgreSQL": twin}.items():
        rows.append(measure_size(Server(site, kbs), f"{kind}, filled", paths, options))
    print(f"\ngrowth: from {len(PATHS)} to {options.resources:,} resources and to {options.entries:,} audit entries", end="")
    print(f" (SQLite filled in {filled:.0f} s, PostgreSQL from it in {time.monotonic() - began - filled:.0f} s)")
    print_table([*COLUMNS, "memory MB", "start s"], rows)
    for few, many in zip(rows[:2], rows[2:], strict=True):
        print(f"{few[0]}: a round costs {float(str(many[5])) / float(str(few[5])):.2f} times as much")


def measure_size(server: Server, name: str, paths: tuple[str, ...], options: argparse.Namespace) -> list[object]:
    with contextlib.closing(server):
        server.load(seconds=1, clients=options.clients, paths=paths)
        result = server.load(seconds=options.seconds, clients=options.clients, paths=paths)
        return [*describe(name, result), server.memory(), server.started]
