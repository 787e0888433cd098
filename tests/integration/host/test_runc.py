"""The driver over the real runc."""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from enclave_cc.errors import EnvironmentFault
from enclave_cc.host.sandbox import cgroups, runc, spec
from enclave_cc.host.sandbox.runc import Runc, Stdio

pytestmark = pytest.mark.root


@pytest.fixture
def pod() -> Iterator[str]:
    name = f"test-{uuid.uuid4().hex[:8]}"
    yield name
    assert cgroups.remove_pod(name, deadline=5)
    assert name not in cgroups.list_pods()


@pytest.fixture
def driver(tmp_path: Path) -> Runc:
    runc.become_subreaper()
    return Runc("runc", tmp_path / "runc", deadline=20)


def make_bundle(tmp_path: Path, pod: str, container: str, *arguments: str, **changes: object) -> Path:
    root = tmp_path / "rootfs"
    for name in ("pause", "proc", "dev"):
        (root / name).mkdir(parents=True, exist_ok=True)
    (root / spec.PAUSE_PLACE.lstrip("/")).touch()
    (root / "pause/sh").touch()
    bundle = tmp_path / container
    bundle.mkdir()
    made = spec.make_pause(spec.Place(pod, container, bundle, tmp_path), root, hostname="h", own_network=True)
    if arguments:
        made["process"]["args"] = list(arguments)
        made["mounts"].append({**made["mounts"][1], "destination": "/pause/sh"})
    made.update(changes)
    (bundle / "config.json").write_text(json.dumps(made))
    return bundle


def test_streams_and_exit_code(driver: Runc, tmp_path: Path, pod: str) -> None:
    bundle = make_bundle(tmp_path, pod, "c", "/pause/sh", "-c", "read line; echo got $line; echo bad >&2; exit 9")
    (in_reader, in_writer), (out_reader, out_writer), (err_reader, err_writer) = (os.pipe() for _ in range(3))
    pid = driver.run("c", bundle, Stdio(in_reader, out_writer, err_writer))
    for descriptor in (in_reader, out_writer, err_writer):
        os.close(descriptor)
    os.write(in_writer, b"this\n")
    os.close(in_writer)
    assert runc.wait_child(pid, time.monotonic() + 10) == 9
    assert os.read(out_reader, 100) == b"got this\n"
    assert os.read(err_reader, 100) == b"bad\n"
    os.close(out_reader)
    os.close(err_reader)
    driver.delete("c")


def test_create_waits_for_start(driver: Runc, tmp_path: Path, pod: str) -> None:
    pid = driver.create("c", make_bundle(tmp_path, pod, "c"))
    assert driver.state("c")["status"] == "created"
    driver.start("c")
    assert driver.state("c")["status"] == "running"
    assert cgroups.find_container(pid) == (pod, "c")
    assert pid in cgroups.list_processes(pod)
    driver.kill("c", 9)
    assert runc.wait_child(pid, time.monotonic() + 10) == -9
    driver.kill("c", 9)  # gone is no error
    driver.delete("c")
    driver.delete("c")
    driver.kill("c", 9)
    assert driver.list_ids() == []
    with pytest.raises(EnvironmentFault) as caught:
        driver.state("c")
    assert caught.value.code == "not-found"


def test_delete_ends_what_runs(driver: Runc, tmp_path: Path, pod: str) -> None:
    pid = driver.run("c", make_bundle(tmp_path, pod, "c"))
    driver.delete("c")
    assert runc.wait_child(pid, time.monotonic() + 10) == -9


def test_runcs_own_words_reach_the_error(driver: Runc, tmp_path: Path, pod: str) -> None:
    with pytest.raises(EnvironmentFault, match="no such file or directory") as caught:
        driver.run("c", make_bundle(tmp_path, pod, "c", "/no/such/program"))
    assert caught.value.code == "runc-failed"
    driver.delete("c")
    assert driver.list_ids() == []


def test_runc_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFault) as caught:
        Runc("no-such-runc", tmp_path, deadline=5).delete("c")
    assert caught.value.code == "missing-tool"


def test_runc_that_hangs_is_killed_at_the_deadline(tmp_path: Path) -> None:
    program = tmp_path / "runc"
    program.write_text("#!/bin/sh\nexec sleep 100\n")
    program.chmod(0o755)
    began = time.monotonic()
    with pytest.raises(EnvironmentFault) as caught:
        Runc(str(program), tmp_path / "root", deadline=0.3).delete("c")
    assert caught.value.code == "deadline"
    assert time.monotonic() - began < 5


def test_a_full_disk_is_told_from_other_failures(tmp_path: Path) -> None:
    log = tmp_path / "log"
    for text, code in (
        ("write /x: no space left on device", "disk-full"),
        ("container init was OOM-killed (memory limit too low?)", "memory-limit"),
        ("something else", "runc-failed"),
    ):
        log.write_text(json.dumps({"level": "error", "msg": text}) + "\nnot json\n")
        assert runc.explain("run", log).code == code
