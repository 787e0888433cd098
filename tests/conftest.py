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


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A directory with a path short enough for unix sockets below it (108 bytes)."""
    directory = Path(tempfile.mkdtemp(prefix="ecc-", dir="/tmp"))
    yield directory
    shutil.rmtree(directory, ignore_errors=True)
