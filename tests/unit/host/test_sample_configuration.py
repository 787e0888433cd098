from __future__ import annotations

import tomllib
from pathlib import Path

from enclave_cc.host.sandbox import configuration

SAMPLE = Path(__file__).resolve().parents[3] / "payload/node/config.toml"


def test_the_sample_shows_the_defaults() -> None:
    parsed = configuration.parse(tomllib.loads(SAMPLE.read_text()), "sample")
    defaults = configuration.Configuration(source="sample")
    assert parsed == defaults


def test_the_samples_comments_hold_when_they_are_taken_up() -> None:
    lines = [
        line.removeprefix("# ") if line.startswith("# ") and " = " in line else line for line in SAMPLE.read_text().splitlines()
    ]
    parsed = configuration.parse(tomllib.loads("\n".join(lines)), "sample")
    assert parsed.tee == "simulated"
    assert parsed.kbs_url and parsed.kbs_certificate
