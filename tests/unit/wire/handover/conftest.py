from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "suites"))

from handover_pair import Pair


@pytest.fixture
def pair() -> Pair:
    return Pair()
