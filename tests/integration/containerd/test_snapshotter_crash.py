"""kill -9 of the snapshotter at any time leaves a consistent store: rows and directories agree, and work goes on."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import alone
import grpc
import pytest
from snapshotter import Snapshots

from enclave_cc.wire.pb.snapshots import Kind

pytestmark = pytest.mark.root
_KILLS = int(os.environ.get("ENCLAVE_CC_SNAPSHOTTER_KILLS", "12"))


@pytest.fixture
def process(short_path: Path) -> Iterator[alone.Snapshotter]:
    running = alone.Snapshotter(short_path)
    yield running
    running.end(signal.SIGKILL)


def work(client: Snapshots, ended: threading.Event, seed: int) -> None:
    """Makes, commits and removes until the snapshotter is gone."""
    chance, parents, number = random.Random(seed), [""], 0
    with suppress(grpc.RpcError, ValueError):  # the latter when the channel is closed under a call that was about to begin
        while not ended.is_set():
            number += 1
            key, parent = f"{seed}-{number}", chance.choice(parents)
            client.prepare(key, parent)
            if chance.random() < 0.6:
                client.commit(f"{key}-c", key)
                parents.append(f"{key}-c")
            elif chance.random() < 0.5:
                client.remove(key)
            if len(parents) > 6:
                name = parents.pop(chance.randrange(1, len(parents)))
                with suppress(grpc.RpcError):
                    client.remove(name)


def check(process: alone.Snapshotter, client: Snapshots) -> None:
    infos = client.walk()
    names = {info.name for info in infos}
    assert all(info.parent in names for info in infos if info.parent)
    database = sqlite3.connect(f"file:{process.root}/snapshots.db?mode=ro", uri=True)
    assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    ids = {str(row[0]) for row in database.execute("SELECT id FROM snapshot")}
    database.close()
    assert {path.name for path in (process.root / "snapshots").iterdir()} == ids
    for info in infos:
        assert info.kind in (Kind.ACTIVE, Kind.COMMITTED)
        assert (info.kind == Kind.ACTIVE) == (not info.name.endswith("-c"))
        client.usage(info.name)


def test_killed_at_random_points(process: alone.Snapshotter) -> None:
    chance = random.Random(7)
    for round_ in range(_KILLS):
        client = Snapshots(process.socket, deadline=10)
        ended = threading.Event()
        threads = [threading.Thread(target=work, args=(client, ended, round_ * 10 + n)) for n in range(3)]
        for thread in threads:
            thread.start()
        time.sleep(chance.uniform(0.02, 0.35))
        process.end(signal.SIGKILL)
        ended.set()
        client.close()
        for thread in threads:
            thread.join(30)
            assert not thread.is_alive()
        process.start()
        client = Snapshots(process.socket, deadline=30)
        check(process, client)
        client.prepare(f"after-{round_}")
        client.close()


def test_one_process_per_root_and_an_orderly_end(process: alone.Snapshotter, short_path: Path) -> None:
    words = ["--root", str(process.root), "--address", str(short_path / "other.sock"), "--content", str(process.content)]
    second = subprocess.run(
        [sys.executable, "-m", "enclave_cc.host.snapshotter", *words], capture_output=True, text=True, check=False
    )
    assert second.returncode == 3
    assert second.stderr.startswith("error already-exists: another snapshotter serves")
    assert process.socket.stat().st_mode & 0o777 == 0o600
    assert process.end(signal.SIGTERM) == 0
    process.start()


def test_memory_and_descriptors_stay_flat(process: alone.Snapshotter) -> None:
    client = Snapshots(process.socket)

    def run(count: int) -> tuple[int, int]:
        for _ in range(count):
            client.prepare("a")
            client.commit("b", "a")
            client.walk()
            client.remove("b")
        status = Path(f"/proc/{process.process.pid}/status").read_text()
        resident = int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS:")))
        return resident, len(list(Path(f"/proc/{process.process.pid}/fd").iterdir()))

    first = run(150)
    second = run(450)
    client.close()
    assert second[0] - first[0] < 2048, "KiB"
    assert second[1] <= first[1]
