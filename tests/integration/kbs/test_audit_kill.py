"""Power cut: kill -9 at any point of an audit append, of the KBS and of PostgreSQL. What was acknowledged is there, the
chain verifies, and appending goes on.

ENCLAVE_CC_KILLS rounds of each kind; `make heavy` runs 500.
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from enclave_cc.errors import EnclaveCcError
from enclave_cc.owner.audit.export import DatabaseSource, compose_export
from enclave_cc.owner.audit.log import AuditLog
from enclave_cc.owner.audit.verification import verify_export
from enclave_cc.owner.kbs import audit_keys
from enclave_cc.owner.storage.settings import DatabaseSettings, open_database
from private_postgresql import PrivatePostgresql

from .killed_writer import KilledWriter

KILLS = int(os.environ.get("ENCLAVE_CC_KILLS", "8"))
# One append alone: the lock, head, number, entry, checkpoint, its row, head again, COMMIT; then the next.
STATEMENTS = range(1, 15)
WRITER = Path(__file__).resolve().parents[2] / "suites/audit_writer.py"


class Scene(KilledWriter):
    """A log that one writer after the other appends to, and everything that was acknowledged."""

    def __init__(self, directory: Path, server: PrivatePostgresql | None) -> None:
        super().__init__(WRITER, directory, server)
        audit_keys.create(directory)
        self.acknowledged: dict[int, str] = {}
        self.kept: list[bytes] = []

    def append(self, threads: int, **how: Any) -> None:
        for line in self.run(str(threads), **how):
            index, leaf, _ = line.split()
            assert int(index) not in self.acknowledged, "one place was given out twice"
            self.acknowledged[int(index)] = leaf

    def check(self) -> int:
        """The log's size."""
        keys = audit_keys.read(self.directory)
        database = open_database(DatabaseSettings(self.url), self.directory)
        try:
            log = AuditLog(database, keys.signer, keys=keys.verifiers)
            lines = compose_export(DatabaseSource(database), log.checkpoint())
            found = verify_export(lines, keys.verifiers, self.kept)
            with database.read() as db:
                stored = {row[0]: bytes(row[1]).hex() for row in db.execute("SELECT leaf_index, leaf_hash FROM audit_entry")}
            assert {index: stored.get(index) for index in self.acknowledged} == self.acknowledged
            self.kept = [log.checkpoint()]
            return found.entries
        finally:
            database.close()


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


def test_before_every_statement_of_an_append(scene: Scene) -> None:
    for statement in STATEMENTS:
        scene.append(1, statement=statement)
    assert scene.check() >= len(scene.acknowledged) > 0


@pytest.mark.timeout(3600)
def test_at_any_moment(scene: Scene) -> None:
    chance = random.Random()  # which moments is not to be repeated: the machine's own timing decides as much
    size = 0
    for round_ in range(KILLS):
        kill_server = scene.server is not None and round_ % 4 == 3
        scene.append(chance.choice([1, 4, 16]), delay=chance.random() * 0.05, kill_server=kill_server)
        # Reading all of a long log each time would be most of the test: opening it checks its end.
        if round_ % 20 == 19 or round_ == KILLS - 1 or round_ < 8:
            size = scene.check()
    assert size >= len(scene.acknowledged) >= KILLS


def test_a_real_kbs(kbs: Any) -> None:
    """Changes that an administrator was told of have their entry, and the log is one."""
    told: list[int] = []
    for round_ in range(max(2, KILLS // 10)):
        stop = threading.Event()

        def change(number: int, stop: threading.Event = stop) -> None:
            while not stop.is_set():
                try:
                    kbs.admin.set_resource(f"acme/key/{number}", os.urandom(32))
                except EnclaveCcError:
                    return
                told.append(number)

        threads = [threading.Thread(target=change, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        time.sleep(0.2 + random.random() * 0.2)
        assert kbs.stop(signal.SIGKILL) == -signal.SIGKILL
        stop.set()
        for thread in threads:
            thread.join()
        kbs.start()
        kbs.cli("kbs", "audit", "verify")
        text = kbs.cli("kbs", "audit", "export", "--resource-prefix", "acme").stdout
        for number in range(4):
            assert text.count(f'"path":"acme/key/{number}"') >= told.count(number), round_
    assert told
