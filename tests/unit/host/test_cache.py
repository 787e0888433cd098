from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

import pytest

from enclave_cc.errors import EnclaveCcError
from enclave_cc.host.sandbox import cache

IDS = [f"{number:032x}" for number in range(1, 6)]


@pytest.fixture
def node(tmp_path: Path) -> Path:
    """Five blobs of 100 bytes, last used one hour apart, the first longest ago."""
    for name in ("blobs", "index", "leases", "tmp"):
        (tmp_path / name).mkdir()
    for number, identifier in enumerate(IDS):
        blob = tmp_path / "blobs" / f"{identifier}.sealed"
        blob.write_bytes(bytes(100))
        used = time.time() - 3600 * (10 - number)
        os.utime(blob, (used, used))
    return tmp_path


def names(node: Path) -> list[str]:
    return [blob.id for blob in cache.list_blobs(node)]


def test_blobs_are_listed_by_use_with_their_holders(node: Path) -> None:
    (node / "leases/pod1").write_text(f"{IDS[2]}\nrubbish\n{IDS[3]}")  # the last line is cut off
    assert names(node) == IDS
    assert {blob.id: blob.pinned_by for blob in cache.list_blobs(node) if blob.pinned_by} == {IDS[2]: ("pod1",)}


def test_the_least_recently_used_go_first(node: Path) -> None:
    cache.collect(node, 250, deadline=5)
    assert names(node) == IDS[3:]


def test_what_a_container_needs_stays(node: Path) -> None:
    (node / "leases/pod1").write_text(f"{IDS[0]}\n")
    cache.collect(node, 0, deadline=5)
    assert names(node) == [IDS[0]]


def test_what_was_used_within_the_minute_stays(node: Path) -> None:
    os.utime(node / "blobs" / f"{IDS[0]}.sealed")
    cache.collect(node, 0, deadline=5)
    assert names(node) == [IDS[0]]


def test_stale_scratch_files_go(node: Path) -> None:
    for name, age in (("old", 2 * 86400), ("new", 10)):
        (node / "tmp" / name).touch()
        os.utime(node / "tmp" / name, (time.time() - age,) * 2)
    cache.collect(node, 1000, deadline=5)
    assert [path.name for path in (node / "tmp").iterdir()] == ["new"]


def test_a_pinning_agent_is_waited_for_not_for_ever(node: Path) -> None:
    with (node / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        with pytest.raises(EnclaveCcError) as caught:
            cache.collect(node, 0, deadline=0.1)
    assert caught.value.code == "deadline"
    assert names(node) == IDS


def test_removing_by_id(node: Path) -> None:
    (node / "leases/pod1").write_text(f"{IDS[1]}\n")
    for words, code in (([IDS[1]], "wrong-state"), (["0000"], "not-found"), (["f" * 32], "not-found"), (["../../x"], "not-found")):
        with pytest.raises(EnclaveCcError) as caught:
            cache.remove_blobs(node, [IDS[0], *words], deadline=5)
        assert caught.value.code == code
    assert names(node) == IDS  # all or nothing
    assert cache.remove_blobs(node, [IDS[0]], deadline=5) == [IDS[0]]
    assert names(node) == IDS[1:]


def test_an_empty_node_has_no_blobs(tmp_path: Path) -> None:
    assert cache.list_blobs(tmp_path / "none") == []
    assert cache.collect(tmp_path / "none", 0, deadline=1) == []
