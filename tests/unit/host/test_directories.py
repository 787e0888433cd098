from __future__ import annotations

import multiprocessing
import multiprocessing.synchronize
import os
from contextlib import suppress
from pathlib import Path

import pytest

from enclave_cc.errors import UsageError
from enclave_cc.host.sandbox import directories
from enclave_cc.host.sandbox.directories import Directories, PodLock


@pytest.fixture
def places(tmp_path: Path) -> Directories:
    made = Directories(tmp_path / "run", tmp_path / "state")
    made.prepare()
    return made


def test_a_lock_is_exclusive_and_free_after_release(places: Directories) -> None:
    lock = PodLock.try_take(places.locks / "a")
    assert lock is not None
    assert PodLock.try_take(places.locks / "a") is None
    lock.release(remove=False)
    again = PodLock.try_take(places.locks / "a")
    assert again is not None
    again.release(remove=True)
    assert not (places.locks / "a").exists()


def test_a_fork_keeps_the_lock(places: Directories) -> None:
    lock = PodLock.try_take(places.locks / "a")
    assert lock is not None
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.read(reader, 1)
        os._exit(0)
    lock.release(remove=False)
    assert PodLock.try_take(places.locks / "a") is None
    os.write(writer, b"x")
    os.waitpid(child, 0)
    os.close(reader)
    os.close(writer)
    taken = PodLock.try_take(places.locks / "a")
    assert taken is not None
    taken.release(remove=True)


def _take_and_remove(path: Path, rounds: int, counter: Path) -> None:
    for _ in range(rounds):
        lock = None
        while lock is None:
            lock = PodLock.try_take(path)
        with counter.open("r+") as file:  # nobody else may be in here
            number = int(file.read() or "0")
            file.seek(0)
            file.write(str(number + 1))
        lock.release(remove=True)


def test_removing_a_lock_file_never_lets_two_in(places: Directories, tmp_path: Path) -> None:
    counter = tmp_path / "counter"
    counter.write_text("0")
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_take_and_remove, args=(places.locks / "a", 100, counter)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert counter.read_text() == "300"


def test_names_are_unique_until_their_pod_is_gone(places: Directories) -> None:
    (places.pods / "id1").mkdir()
    directories.claim_name(places, "web", "id1")
    with pytest.raises(UsageError) as caught:
        directories.claim_name(places, "web", "id2")
    assert caught.value.code == "already-exists"
    (places.pods / "id1").rmdir()  # as if a crash had left the name
    directories.claim_name(places, "web", "id2")
    assert directories.read_name(places, "web") == "id2"


@pytest.mark.parametrize("name", ["", "../x", "a/b", "-x", ".x", "x" * 64, "ü", "a b"])
def test_names_that_are_no_names(places: Directories, name: str) -> None:
    with pytest.raises(UsageError):
        directories.claim_name(places, name, "id")


def test_find_by_id_beginning_and_name(places: Directories) -> None:
    for identifier in ("abcd1", "abce2"):
        (places.pods / identifier).mkdir()
    (places.records / "ffff3").mkdir()
    directories.claim_name(places, "web", "ffff3")
    assert directories.find(places, "abcd1") == places.pods / "abcd1"
    assert directories.find(places, "abcd") == places.pods / "abcd1"
    assert directories.find(places, "web") == places.records / "ffff3"
    for word in ("abc", "ab", "nothing", "", "../pods/abcd1"):
        with pytest.raises(UsageError) as caught:
            directories.find(places, word)
        assert caught.value.code == "not-found"


def test_foreign_ids_get_short_directory_names() -> None:
    assert directories.shorten("0123456789abcdef") == "0123456789abcdef"
    assert len(directories.shorten("f" * 64)) == directories.ID_SIZE
    assert directories.shorten("../../etc") not in {"..", "../../etc"}
    assert "/" not in directories.shorten("a/b")


def _claim(places: Directories, identifier: str, start: multiprocessing.synchronize.Barrier, wins: Path) -> None:
    (places.pods / identifier).mkdir()
    start.wait(30)
    with suppress(UsageError):
        directories.claim_name(places, "name", identifier)
        (wins / identifier).touch()


def test_a_dead_pods_name_goes_to_one_of_those_who_want_it(places: Directories, tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    for round_number in range(15):
        (places.names / "name").unlink(missing_ok=True)
        (places.names / "name").symlink_to("dead")
        wins = tmp_path / f"wins{round_number}"
        wins.mkdir()
        start = context.Barrier(4)
        others = [context.Process(target=_claim, args=(places, f"{round_number}x{n}", start, wins)) for n in range(4)]
        for other in others:
            other.start()
        for other in others:
            other.join(30)
        assert [path.name for path in wins.iterdir()] == [directories.read_name(places, "name")]
