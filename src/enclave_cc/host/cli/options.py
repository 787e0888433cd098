"""Arguments that several node commands share, and how their values read."""

from __future__ import annotations

import argparse
import os
import re

from enclave_cc.errors import UsageError, foreign
from enclave_cc.host.sandbox import configuration
from enclave_cc.host.sandbox.configuration import Configuration

_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([bkmgt]?)(?:i?b)?", re.IGNORECASE)
_UNITS = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


def add_common(parser: argparse.ArgumentParser, *, json: bool = True) -> None:
    parser.add_argument(
        "--config", metavar="FILE", help=f"configuration (default: $ENCLAVE_CC_CONFIG, {configuration.DEFAULT_FILE})"
    )
    if json:
        parser.add_argument("--json", action="store_true", help="print JSON")


def load(arguments: argparse.Namespace) -> Configuration:
    """Raises `UsageError("bad-config")`."""
    return configuration.load(arguments.config)


def parse_variable(text: str) -> str:
    """`NAME=VALUE`; a name alone takes this process's value. Raises `UsageError("usage")`."""
    if "=" in text:
        return text
    value = os.environ.get(text)
    if value is None:
        raise UsageError("usage", f"the variable {foreign(text)} is not set here", "Write it as NAME=VALUE.")
    return f"{text}={value}"


def parse_size(text: str) -> int:
    """Bytes of `512m`, `1.5g`, `4096`. Raises `UsageError("usage")`."""
    found = _SIZE.fullmatch(text.strip())
    if not found:
        raise UsageError("usage", f"{foreign(text)!r} is no size", "Write it as 512m or 2g.")
    return int(float(found[1]) * _UNITS[found[2].lower()])
