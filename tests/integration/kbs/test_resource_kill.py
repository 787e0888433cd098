"""Power cut: kill -9 at any point of a resource write, of the KBS and of PostgreSQL. What was acknowledged is there, and
nothing is half-written.

ENCLAVE_CC_KILLS rounds of each kind; `make heavy` runs 500. (What a kill leaves to the kernel, a real power cut loses: that
it was synced first is for SQLite's and PostgreSQL's own settings, which tests/unit/owner/storage looks at.)
"""

from __future__ import annotations

import os
import random
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from enclave_cc.crypto.secret import Secret
from enclave_cc.errors import EnclaveCcError, UsageError
from enclave_cc.owner.resources.database_store import DatabaseResourceStore
from enclave_cc.owner.resources.sealing import Keyring
from enclave_cc.owner.storage.settings import DatabaseSettings, open_database
from enclave_cc.wire.rcar.uri import ResourcePath
from private_postgresql import PrivatePostgresql

from .killed_writer import KilledWriter

KILLS = int(os.environ.get("ENCLAVE_CC_KILLS", "8"))
WRITER = Path(__file__).resolve().parents[2] / "suites/resource_writer.py"
KEY = Secret(bytes(range(32)))  # as the writer's
# Six puts and a delete, alone: each lookup, insert, COMMIT, and the moment behind it.
STATEMENTS = range(1, 50)
DELETED = "-"


class Scene(KilledWriter):
    """A store that one writer after the other is killed in, and what each path may hold."""

    def __init__(self, directory: Path, server: PrivatePostgresql | None) -> None:
        super().__init__(WRITER, directory, server)
        self.acknowledged = 0
        self.versions: dict[str, int] = {}
        self.possible: dict[str, set[str]] = {}  # of each path: what was acknowledged last, and what was begun since

    def write(self, threads: int, label: str, **how: Any) -> None:
        for line in self.run(str(threads), label, **how):
            self.note(*line.split())

    def note(self, kind: str, path: str, text: str, version: str = "0") -> None:
        if kind == "?":
            self.possible.setdefault(path, {DELETED}).add(text)
            return
        self.acknowledged += 1
        self.possible[path] = {text}
        if int(version):
            assert int(version) > self.versions.get(path, 0), "a version was given out twice"
            self.versions[path] = int(version)

    def check(self) -> None:
        database = open_database(DatabaseSettings(self.url), self.directory)
        try:
            store = DatabaseResourceStore(database, Keyring([KEY]))
            for path, possible in self.possible.items():
                self._check_path(store, path, possible)
            with database.read() as db:
                stored = db.execute("SELECT path, version FROM resource").fetchall()
                heads = db.execute("SELECT path, last FROM resource_head WHERE present = 1").fetchall()
                history = db.execute("SELECT path, version FROM resource_version WHERE removed IS NULL").fetchall()
            assert set(heads) <= set(stored)
            assert set(stored) == set(history)
            for path, version in stored:  # every value opens, and is whole
                text = store.get(ResourcePath.parse(path), version).value.reveal().decode()
                assert set(text.split(";")[:-1]) == {text.split(";")[0]}
        finally:
            database.close()

    def _check_path(self, store: DatabaseResourceStore, path: str, possible: set[str]) -> None:
        try:
            found = store.get(ResourcePath.parse(path))
        except UsageError:
            assert DELETED in possible, f"{path} is gone, which none of {possible} can explain"
            self.possible[path] = {DELETED}
            return
        text = found.value.reveal().decode().partition(";")[0] + ";"
        assert text in possible, f"{path} holds {text}, not one of {possible}"
        assert found.version >= self.versions.get(path, 0)
        self.possible[path] = {text}
        self.versions[path] = found.version


@pytest.fixture(scope="module")
def server() -> Iterator[PrivatePostgresql]:
    """One of this module's own: it is killed."""
    made = PrivatePostgresql()
    try:
        made.start()
        yield made
    finally:
        made.stop()


@pytest.fixture(params=["sqlite", "postgresql"])
def scene(request: pytest.FixtureRequest, tmp_path: Path) -> Scene:
    return Scene(tmp_path, request.getfixturevalue("server") if request.param == "postgresql" else None)


def test_before_every_statement_of_a_write(scene: Scene) -> None:
    # All of them take half a minute; a third, at other places each time, does for an ordinary run.
    statements = STATEMENTS if KILLS >= 100 else sorted(random.sample(STATEMENTS, len(STATEMENTS) // 3))
    for statement in statements:
        scene.write(1, f"s{statement}", statement=statement)
        scene.check()
    assert scene.acknowledged


@pytest.mark.timeout(3600)
def test_at_any_moment(scene: Scene) -> None:
    chance = random.Random()  # which moments is not to be repeated: the machine's own timing decides as much
    for round_ in range(KILLS):
        kill_server = scene.server is not None and round_ % 2 == 1
        scene.write(chance.choice([1, 4, 16]), f"r{round_}", delay=chance.random() * 0.05, kill_server=kill_server)
        scene.check()
    assert scene.acknowledged >= KILLS


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_a_real_kbs(kind: str, request: pytest.FixtureRequest, tmp_path: Path, machine: Any, new_kbs: Any) -> None:
    """Through HTTP: what an administrator was told of is there after the KBS, and its server, were killed."""
    server: PrivatePostgresql | None = request.getfixturevalue("server") if kind == "postgresql" else None
    kbs = new_kbs(tmp_path, machine, database=None if server is None else server.url(server.create_database()))
    told: dict[str, bytes] = {}
    count = 0
    for round_ in range(max(3, KILLS // 20)):
        pending: tuple[str, bytes] = ("", b"")

        def kill(with_server: bool = bool(round_ % 2)) -> None:
            if server is not None and with_server:
                server.kill()
            os.kill(kbs.process.pid, signal.SIGKILL)

        timer = threading.Timer(0.1 + random.random() * 0.3, kill)
        timer.start()
        while True:
            pending = (f"default/kill/{count % 5}", os.urandom(16) * random.choice((1, 100, 5000)))
            try:
                kbs.admin.set_resource(*pending)
            except EnclaveCcError:
                break
            told[pending[0]] = pending[1]
            count += 1
        timer.join()
        kbs.process.wait(20)
        kbs.process.stdout.close()
        if server is not None and round_ % 2:
            server.start()
        kbs.start()
        for path, value in told.items():
            found = kbs.admin.get_resource(path)
            assert found == value or (path, found) == pending
            told[path] = found
    assert count
    assert kbs.stop() == 0
