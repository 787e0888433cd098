"""Policies from files."""

from __future__ import annotations

from enclave_cc.errors import UsageError
from enclave_cc.owner.cli.resource import read_input


def read_policy(name: str) -> str:
    """The text of a file, or of standard input for `-`. Raises `UsageError`: "not-found" or "policy-invalid"."""
    try:
        return read_input(name).decode()
    except UnicodeDecodeError as error:
        raise UsageError("policy-invalid", f"{name} is not UTF-8 text") from error
