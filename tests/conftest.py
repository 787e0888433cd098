"""Fixtures for all tests: a short scratch path, and one whole site (registry, KBS, simulated platform, bundles of the
present source) for the session, shared by the end-to-end and the hostile tests.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))

import testbed as testbeds  # noqa: E402  (lies in tools/)
from enclave_cc.owner.storage import migration  # noqa: E402
from enclave_cc.owner.storage.database import Database  # noqa: E402
from enclave_cc.owner.storage.settings import DatabaseSettings, open_database  # noqa: E402
from private_postgresql import PrivatePostgresql  # noqa: E402

# A busy machine is slow, and no test asserts on time: hypothesis must not either.
hypothesis.settings.register_profile("enclave-cc", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("enclave-cc")

CANARY = "CANARY-" + os.urandom(16).hex()


@pytest.fixture(scope="session")
def testbed() -> Iterator[testbeds.Testbed]:
    directory = Path(tempfile.mkdtemp(prefix="ecc-", dir="/tmp"))
    with testbeds.running(directory / "s") as site:
        yield site
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="session")
def canary() -> str:
    return CANARY


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An OCI layout with the images that tests publish."""
    directory = tmp_path_factory.mktemp("images")
    root = testbeds.busybox_root(directory / "root")
    (root / "opt").mkdir()
    (root / "opt/secret").write_text((CANARY + "\n") * 2000)
    layout = directory / "layout"
    testbeds.make_image(layout, "busybox", root, "--config.cmd", "/bin/sh")
    configured = ["--config.entrypoint", "/bin/sh", "--config.entrypoint", "-c", "--config.cmd", "id; pwd; echo $COLOUR"]
    configured += ["--config.user", "app:audio", "--config.workingdir", "/home/app", "--config.env", "COLOUR=blue"]
    testbeds.make_image(layout, "configured", root, *configured)
    return layout


@pytest.fixture(scope="session")
def busybox(testbed: testbeds.Testbed, sources: Path) -> str:
    """A published busybox whose owner allows every override."""
    return testbed.publish(f"{sources}:busybox", "busybox", "--allow", "all")


@pytest.fixture(scope="session")
def strict(testbed: testbeds.Testbed, sources: Path) -> str:
    """A published image whose owner allows nothing."""
    return testbed.publish(f"{sources}:configured", "strict")


@pytest.fixture
def clean(testbed: testbeds.Testbed) -> Iterator[None]:
    """Nothing may be left of a test's pods. (Control groups and processes are the machine's: one run at a time.)"""
    yield
    for pod in testbed.pods():
        testbed.cli("rm", "-f", str(pod["id"]), check=False)
    left = {kind: items for kind, items in testbed.leftovers().items() if items}
    assert left == {}


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PrivatePostgresql]:
    """One server for the session; `kbs_template` in it has the schema of this program."""
    server = PrivatePostgresql()
    try:
        server.start()
        server.run("CREATE DATABASE kbs_template TEMPLATE template0 ENCODING 'UTF8'")
        opened = open_database(DatabaseSettings(server.url("kbs_template"), pool=1), server.directory)
        migration.migrate(opened)
        opened.close()
        yield server
    finally:
        server.stop()


@pytest.fixture(params=["sqlite", "postgresql"])
def database_settings(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[DatabaseSettings]:
    """A migrated, empty database of either kind; whoever needs one asks for this and runs twice."""
    if request.param == "sqlite":
        settings = DatabaseSettings(f"sqlite:{tmp_path / 'kbs.db'}")
        opened = open_database(settings, tmp_path, create=True)
        migration.migrate(opened)
        opened.close()
        yield settings
        return
    server = request.getfixturevalue("postgresql")
    name = server.create_database("kbs_template")
    yield DatabaseSettings(server.url(name))
    server.drop_database(name)


@pytest.fixture
def database(database_settings: DatabaseSettings, tmp_path: Path) -> Iterator[Database]:
    opened = open_database(database_settings, tmp_path)
    yield opened
    opened.close()


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A directory with a path short enough for unix sockets below it (108 bytes)."""
    directory = Path(tempfile.mkdtemp(prefix="ecc-", dir="/tmp"))
    yield directory
    shutil.rmtree(directory, ignore_errors=True)
