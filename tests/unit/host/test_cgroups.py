"""Version 2 of control groups, as far as this machine has it: the kernel's tree for processes, its file formats for counters."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from enclave_cc.errors import UsageError
from enclave_cc.host.sandbox import cgroups
from enclave_cc.host.shim import oom, stats
from enclave_cc.host.shim.log import Log
from enclave_cc.host.shim.reaper import Reaper
from enclave_cc.wire.pb import cgroup_metrics as metrics
from enclave_cc.wire.pb import codec

# Linux, Documentation/admin-guide/cgroup-v2.rst
FILES = {
    "pids.current": "3\n",
    "pids.max": "max\n",
    "cpu.stat": "usage_usec 1500\nuser_usec 1000\nsystem_usec 500\nnr_periods 7\nnr_throttled 2\nthrottled_usec 9\n",
    "memory.current": "4096\n",
    "memory.max": "max\n",
    "memory.swap.current": "0\n",
    "memory.swap.max": "1048576\n",
    "memory.peak": "8192\n",
    "memory.stat": "anon 100\nfile 200\nworkingset_refault_anon 1\nworkingset_refault_file 5\npgfault 42\n",
    "memory.events": "low 0\nhigh 1\nmax 2\noom 3\noom_kill 4\noom_group_kill 0\n",
    "io.stat": "8:16 rbytes=1459200 wbytes=314773504 rios=192 wios=353 dbytes=0 dios=0\n8:0 \n",
}


@pytest.fixture
def group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(cgroups, "ROOT", tmp_path)
    (tmp_path / "cgroup.controllers").write_text("cpu io memory pids\n")
    made = tmp_path / "kubepods/c1"
    made.mkdir(parents=True)
    for name, text in FILES.items():
        (made / name).write_text(text)
    return made


def test_what_a_container_uses(group: Path) -> None:
    url, data = stats.measure("/kubepods/c1")
    assert url == metrics.V2_URL
    found = codec.decode(metrics.MetricsV2, data)
    assert found.pids == metrics.PidsV1(3, 0)
    assert found.cpu == metrics.CpuV2(
        usage_usec=1500, user_usec=1000, system_usec=500, nr_periods=7, nr_throttled=2, throttled_usec=9
    )
    memory = found.memory
    assert memory is not None
    assert (memory.anon, memory.file, memory.workingset_refault, memory.pgfault) == (100, 200, 5, 42)
    assert (memory.usage, memory.usage_limit, memory.swap_limit, memory.max_usage) == (4096, (1 << 64) - 1, 1 << 20, 8192)
    assert found.events == metrics.MemoryEventsV2(low=0, high=1, max=2, oom=3, oom_kill=4)
    assert found.io is not None
    assert metrics.IoEntryV2(8, 16, 1459200, 314773504, 192, 353) in found.io.usage
    with pytest.raises(UsageError, match="gone"):
        stats.measure("/kubepods/c2")


def test_oom_kills_are_counted_and_told(group: Path) -> None:
    assert cgroups.count_oom_kills_at("/kubepods/c1") == 4
    told = threading.Event()
    reaper = Reaper(Log(None))
    reaper.start()
    oom.watch("/kubepods/c1", reaper, told.set)
    (group / "memory.events").write_text(FILES["memory.events"].replace("oom_kill 4", "oom_kill 5"))
    assert told.wait(10)
    assert cgroups.count_oom_kills_at("/kubepods/c1") == 5


@pytest.fixture
def tree(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A group of the kernel's, in the tree of version 2."""
    root = next(
        (path for path in (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/unified")) if (path / "cgroup.procs").exists()), None
    )
    if root is None:
        pytest.skip("no tree of version 2 is mounted")
    monkeypatch.setattr(cgroups, "ROOT", root)
    place = f"/enclave-cc-test-{os.urandom(4).hex()}"
    (root / place[1:] / "inner").mkdir(parents=True)
    yield place
    for path in (root / place[1:] / "inner", root / place[1:]):
        if path.exists():
            path.rmdir()


@pytest.mark.root
def test_processes_of_a_group_are_found_and_ended_with_it(tree: str) -> None:
    assert cgroups.is_unified()
    with subprocess.Popen(["sleep", "100"]) as process:
        (cgroups.ROOT / tree[1:] / "inner/cgroup.procs").write_text(str(process.pid))
        assert cgroups.list_processes_at(tree) == {process.pid}
        assert cgroups.find_place(process.pid, ["/elsewhere", tree]) == tree
        assert cgroups.find_place(os.getpid(), ["/elsewhere", tree]) is None
        reaping = threading.Thread(target=process.wait)
        reaping.start()
        assert cgroups.remove_at(tree, deadline=10)
        reaping.join()
        assert process.returncode == -9
    assert not (cgroups.ROOT / tree[1:]).exists()
