"""docs/threat-model.md names what shows each defence; what it names must be there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ROWS = re.findall(r"^\| ([A-Z]+-\d{3}) \| .* \| ([^|]+) \|$", (ROOT / "docs/threat-model.md").read_text(), re.MULTILINE)


def test_every_threat_has_a_test_that_exists() -> None:
    assert len(ROWS) >= 20  # the expression still fits the table
    for threat, tests in ROWS:
        named = re.findall(r"`([^`]+)`", tests)
        assert named, threat
        for path in named:
            assert (ROOT / path).exists(), f"{threat}: {path}"


def test_ids_are_unique_and_in_order_of_their_kind() -> None:
    ids = [threat for threat, _ in ROWS]
    assert len(set(ids)) == len(ids)
    for kind in {threat.split("-")[0] for threat in ids}:
        of_kind = [threat for threat in ids if threat.startswith(kind)]
        assert of_kind == sorted(of_kind)
