from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "suites"))

from openbao import OpenBao


@pytest.fixture(scope="session")
def bao(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenBao]:
    """One server for tests that leave it as it is."""
    server = OpenBao(tmp_path_factory.mktemp("bao") / "server")
    server.mount("one", 1)
    server.mount("two", 2)
    yield server
    server.stop()
