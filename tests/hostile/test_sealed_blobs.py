"""HOST-002, HOST-003: the host changes, swaps, truncates or rolls back what lies sealed on its disk."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import testbed as testbeds

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("clean")]

SIZE = 8 << 20


@pytest.fixture(scope="module")
def big(testbed: testbeds.Testbed, sources: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """An image with eight megabytes of random data in one file: many blocks, none of them compressible."""
    root = testbeds.busybox_root(tmp_path_factory.mktemp("big") / "root")
    (root / "data").write_bytes(os.urandom(SIZE))
    return testbed.publish(testbeds.make_image(sources, "big", root, "--config.cmd", "/bin/sh"), "big", "--allow", "all")


@pytest.fixture
def sealed(testbed: testbeds.Testbed, big: str) -> Iterator[Path]:
    """The largest sealed blob of the cache; the cache is emptied after the test."""
    shutil.rmtree(testbed.state / "cache", ignore_errors=True)  # other tests' images may be larger
    testbed.cli("run", "--rm", "--quiet", big, "true")
    yield max((testbed.state / "cache/blobs").glob("*.sealed"), key=lambda p: p.stat().st_size)
    shutil.rmtree(testbed.state / "cache", ignore_errors=True)


def flip(blob: Path, at: int) -> None:
    with blob.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)
        file.seek(at)
        file.write(bytes([byte[0] ^ 0x10]))


def read_all(testbed: testbeds.Testbed, image: str) -> subprocess.CompletedProcess[str]:
    return testbed.cli("run", "--rm", "--quiet", image, "sh", "-c", "sha256sum /data && echo whole", check=False)


def assert_noticed(done: subprocess.CompletedProcess[str]) -> None:
    assert done.returncode != 0
    assert "whole" not in done.stdout
    assert "seal-broken" in done.stderr or "I/O error" in done.stderr or "Input/output error" in done.stderr, done.stderr


def test_a_byte_changed_before_start(testbed: testbeds.Testbed, big: str, sealed: Path) -> None:
    flip(sealed, SIZE // 2)
    assert_noticed(read_all(testbed, big))


def test_a_byte_changed_while_it_runs(testbed: testbeds.Testbed, big: str, sealed: Path) -> None:
    script = "echo ready; until [ -e /tmp/go ]; do sleep 0.1; done; sha256sum /data; echo ended $?; sleep 60"
    pod = testbed.cli("run", "-d", big, "sh", "-c", script).stdout.strip()
    wait_for(lambda: "ready" in testbed.cli("logs", pod).stdout)
    flip(sealed, SIZE // 2)
    Path("/proc/sys/vm/drop_caches").write_text("3")
    testbed.cli("exec", pod, "touch", "/tmp/go")
    wait_for(lambda: "ended" in testbed.cli("logs", pod).stdout)
    assert "ended 0" not in testbed.cli("logs", pod).stdout
    logs = testbed.cli("logs", "--boot", pod).stdout
    assert "seal-broken" in logs and sealed.name.removesuffix(".sealed") in logs and "block" in logs


@pytest.mark.parametrize("change", ["truncated", "extended", "swapped", "emptied"])
def test_another_file_in_its_place(testbed: testbeds.Testbed, big: str, sealed: Path, change: str) -> None:
    changes: dict[str, Callable[[], object]] = {
        "truncated": lambda: os.truncate(sealed, sealed.stat().st_size // 2),
        "extended": lambda: os.truncate(sealed, sealed.stat().st_size + 131088),
        "swapped": lambda: shutil.copyfile(sorted(sealed.parent.glob("*.sealed"), key=lambda p: p.stat().st_size)[0], sealed),
        "emptied": lambda: os.truncate(sealed, 0),
    }
    expected = read_all(testbed, big).stdout
    changes[change]()
    done = read_all(testbed, big)
    if done.returncode == 0:
        # A file of another size is no blob of this cache any more: it was pulled anew (docs/formats/sealed.md).
        assert done.stdout == expected
        return
    assert_noticed(done)


def test_an_older_blob_under_the_same_name(testbed: testbeds.Testbed, big: str, sealed: Path) -> None:
    """The cache is dropped, so the same layer is sealed anew under another key; the old bytes come back in its place."""
    old = sealed.read_bytes()
    shutil.rmtree(testbed.state / "cache")
    testbed.cli("run", "--rm", "--quiet", big, "true")
    new = max((testbed.state / "cache/blobs").glob("*.sealed"), key=lambda p: p.stat().st_size)
    assert new.stat().st_size == len(old) and new.read_bytes() != old
    new.write_bytes(old)
    assert_noticed(read_all(testbed, big))


def test_a_forged_index_entry_is_a_miss(testbed: testbeds.Testbed, big: str, sealed: Path) -> None:
    for entry in (testbed.state / "cache/index").iterdir():
        entry.write_bytes(b"\0" * entry.stat().st_size)
    assert "whole" in read_all(testbed, big).stdout  # pulled again, whole


def wait_for(condition: Callable[[], bool], seconds: float = 20) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "the condition did not come true in time"
        time.sleep(0.1)


def test_the_cache_is_listed_without_keys(testbed: testbeds.Testbed, big: str, sealed: Path) -> None:
    shown = testbed.cli("image", "ls", "--json").stdout
    assert json.loads(shown)
