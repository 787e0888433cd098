"""What a killed supervisor leaves is found and taken down, whenever it was killed."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from enclave_cc.errors import UsageError
from enclave_cc.host.sandbox import cgroups, directories, ending
from enclave_cc.host.sandbox.configuration import Configuration, load
from enclave_cc.host.sandbox.directories import Directories
from enclave_cc.host.sandbox.reconcile import reconcile

pytestmark = pytest.mark.root
PROGRAM = Path(__file__).with_name("crash.py")


@pytest.fixture
def node(short_path: Path) -> Iterator[Configuration]:
    file = short_path / "config.toml"
    file.write_text(
        f'[paths]\nstate = "{short_path}/state"\nrun = "{short_path}/run"\n[platform]\ntee = "simulated"\n'
        '[network]\nbridge = "ecc-test0"\nsubnet = "10.88.78.0/24"\n'
    )
    yield load(str(file))
    subprocess.run(["ip", "link", "delete", "ecc-test0"], capture_output=True, check=False)


def spawn(node: Configuration, *, network: str = "none", remove: bool = True, name: str = "") -> subprocess.Popen[str]:
    command = [sys.executable, str(PROGRAM), node.source, network, "remove" if remove else "keep", name]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def read_started(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    identifier = process.stdout.readline().split()[-1]
    assert process.stdout.readline() == "started\n"
    return identifier


def kill(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


def left_of(node: Configuration, identifier: str) -> list[object]:
    places = Directories.of(node)
    found: list[object] = []
    found += directories.list_ids(places.pods) + directories.list_ids(places.locks) + directories.list_ids(places.leases)
    found += [name for name in cgroups.list_pods() if name == identifier]
    found += [entry.name for entry in os.scandir(places.runc)]
    found += [line for line in Path("/proc/self/mounts").read_text().splitlines() if str(node.run) in line]
    leases = node.run / "cni/enclave-cc"
    found += [path.name for path in leases.glob("10.*")] if leases.exists() else []
    rules = subprocess.run(["iptables-save"], capture_output=True, text=True, check=True).stdout.splitlines()
    found += [rule for rule in rules if identifier and f"{identifier}-pause" in rule]
    return found


@pytest.mark.parametrize("network", ["none", "pod"])
def test_a_killed_supervisors_pod_is_taken_down(node: Configuration, network: str) -> None:
    process = spawn(node, network=network)
    identifier = read_started(process)
    assert cgroups.list_processes(identifier)
    assert reconcile(node) == []
    assert cgroups.list_processes(identifier)  # a living supervisor's pod is left alone
    kill(process)
    assert reconcile(node) == []
    assert left_of(node, identifier) == []
    assert directories.list_ids(Directories.of(node).records) == []


def test_killed_at_any_moment(node: Configuration) -> None:
    rng = random.Random(5)
    for _ in range(12):
        process = spawn(node)
        time.sleep(rng.uniform(0.02, 0.5))
        kill(process)
        assert reconcile(node) == []
        assert left_of(node, "") == []
    assert not [pid for pid in Path("/proc").glob("[0-9]*") if is_pause_of(pid, node)]


def is_pause_of(process: Path, node: Configuration) -> bool:
    try:
        return str(node.run) in (process / "mountinfo").read_text() and b"/pause/" in (process / "cmdline").read_bytes()
    except OSError:
        return False


def test_a_record_is_kept_unless_rm_was_asked(node: Configuration) -> None:
    process = spawn(node, remove=False, name="lost")
    identifier = read_started(process)
    kill(process)
    reconcile(node)
    places = Directories.of(node)
    record = directories.read_json(places.records / identifier / "pod.json")
    assert record["state"] == "lost"
    with pytest.raises(UsageError):
        directories.claim_name(places, "lost", "other")
    ending.remove(node, directories.find(places, "lost"), force=False)
    assert directories.list_ids(places.records) + directories.list_ids(places.names) == []


def test_a_take_down_that_was_interrupted_is_repeated(node: Configuration) -> None:
    """kill -9 of the command that reconciles."""
    process = spawn(node)
    identifier = read_started(process)
    kill(process)
    script = "import sys\nfrom enclave_cc.host.sandbox import configuration, reconcile\n"
    script += "reconcile.reconcile(configuration.load(sys.argv[1]))"
    for delay in (0.05, 0.15, 0.2):
        other = subprocess.Popen([sys.executable, "-c", script, node.source])
        time.sleep(delay)
        other.kill()
        other.wait()
    assert reconcile(node) == []
    assert left_of(node, identifier) == []


def test_rm_of_a_live_pod_needs_force(node: Configuration) -> None:
    process = spawn(node, name="live")
    identifier = read_started(process)
    places = Directories.of(node)
    with pytest.raises(UsageError) as caught:
        ending.remove(node, directories.find(places, "live"), force=False)
    assert caught.value.code == "wrong-state"
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    ending.remove(node, directories.find(places, "live"), force=True)
    assert left_of(node, identifier) == []


def test_many_reconcile_at_once(node: Configuration) -> None:
    processes = [spawn(node) for _ in range(4)]
    identifiers = [read_started(process) for process in processes]
    for process in processes:
        kill(process)
    script = "import sys\nfrom enclave_cc.host.sandbox import configuration, reconcile\n"
    script += "sys.exit(len(reconcile.reconcile(configuration.load(sys.argv[1]))))"
    others = [subprocess.Popen([sys.executable, "-c", script, node.source]) for _ in range(3)]
    assert [other.wait(60) for other in others] == [0, 0, 0]
    reconcile(node)
    for identifier in identifiers:
        assert left_of(node, identifier) == []
