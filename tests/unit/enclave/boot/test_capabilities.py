"""Capability names and masks."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from enclave_cc.enclave.boot import capabilities
from enclave_cc.errors import PeerError


def test_names_are_the_kernels() -> None:
    header = Path("/usr/include/linux/capability.h").read_text()
    numbers = {name: int(number) for name, number in re.findall(r"#define CAP_(\w+)\s+(\d+)\n", header)}
    assert {name: bit for bit, name in enumerate(capabilities.NAMES)} == numbers


def test_masks() -> None:
    assert capabilities.parse_names([]) == 0
    assert capabilities.parse_names(["CAP_CHOWN", "kill", "Cap_Sys_Admin"]) == 1 | 1 << 5 | 1 << 21
    for mask in (0, 1, (1 << 41) - 1, 0xA80425FB):
        assert capabilities.parse_names(capabilities.list_names(mask)) == mask


@pytest.mark.parametrize("name", ["", "CAP_", "CAP_ALL", "CHOWN "])
def test_unknown_names(name: str) -> None:
    with pytest.raises(PeerError, match="launch-failed"):
        capabilities.parse_names([name])
