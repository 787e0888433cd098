"""The tree says who runs what; these tests hold it to that."""

from __future__ import annotations

from pathlib import Path

import pytest

import enclave_cc

SOURCE = Path(enclave_cc.__file__).parent
ZONES = ("crypto", "wire", "transport", "enclave", "host", "owner", "simulator")


@pytest.mark.parametrize("zone", ZONES)
def test_each_zone_says_where_it_runs_what_it_trusts_and_what_it_never_does(zone: str) -> None:
    text = (SOURCE / zone / "__init__.py").read_text()
    assert all(f"\n{word}: " in text for word in ("Runs", "Trusts", "Never"))


def test_modules_are_nouns_of_the_field_and_not_drawers() -> None:
    drawers = {"utils", "common", "helpers", "helper", "manager", "types", "misc"}
    assert [p for p in SOURCE.rglob("*.py") if p.stem in drawers] == []


def test_every_module_says_what_it_is_for() -> None:
    silent = [p for p in SOURCE.rglob("*.py") if p.read_text().strip() and not p.read_text().lstrip().startswith(('"""', "# "))]
    assert silent == []
