"""What every test may use; anything that costs time is a fixture of the folder that needs it."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """A test that needs root fails without it, rather than pass by being skipped: CI runs as root."""
    if os.geteuid() and any(item.get_closest_marker("root") for item in items):
        config.issue_config_time_warning(pytest.PytestWarning("tests marked root need root"), stacklevel=2)


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A directory with a path short enough for unix sockets below it (108 bytes)."""
    directory = Path(tempfile.mkdtemp(prefix="ecc-", dir="/tmp"))
    yield directory
    shutil.rmtree(directory, ignore_errors=True)
