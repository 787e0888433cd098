"""Verify an SGX DCAP quote offline against given collateral and a trusted root; print its claims as JSON.

Without --root the quote must chain to Intel's SGX root. A quote of a simulated platform needs that platform's root,
named here on purpose; the claims then say "simulated": true.
"""

from __future__ import annotations

import argparse
import base64
import binascii
import re
import time
from pathlib import Path

from enclave_cc import console
from enclave_cc.errors import UsageError
from enclave_cc.owner.verifier import quote as quote_verifier
from enclave_cc.owner.verifier import roots
from enclave_cc.wire.sgx.collateral import COLLATERAL_LIMIT, Collateral
from enclave_cc.wire.sgx.quote import QUOTE_LIMIT

_HEX = re.compile(rb"(?:0x)?((?:[0-9a-fA-F]{2}|\s)+)")
_FILE_LIMIT = 4 * QUOTE_LIMIT  # hex with white space


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, metavar="FILE", help="the quote: raw, hex or base64")
    parser.add_argument("--collateral", type=Path, required=True, metavar="FILE", help="QuoteCollateralV3 as JSON")
    parser.add_argument("--root", type=Path, metavar="PEM", help="trust this root certificate instead of Intel's")
    parser.add_argument("--at", type=int, metavar="UNIX_TIME", help="the time to verify at (default: now)")
    parser.add_argument("--json", action="store_true", help="print a refusal as JSON too")


def run(arguments: argparse.Namespace) -> int:
    """Prints claims and returns 0. Raises `PeerError` with the refusal's code, `UsageError` for files that cannot be read."""
    data = decode_quote(_read(arguments.file, _FILE_LIMIT))
    collateral = Collateral.parse(_read(arguments.collateral, COLLATERAL_LIMIT))
    if arguments.root is None:
        trusted = roots.intel_root()
    else:
        pem = _read(arguments.root, COLLATERAL_LIMIT)
        trusted = roots.TrustedRoot.from_pem(arguments.root.name, pem, simulated=not roots.is_intel(pem))
    at = int(time.time()) if arguments.at is None else arguments.at
    if not 0 <= at < 1 << 40:
        raise UsageError("usage", "--at is in seconds since 1970")
    claims = quote_verifier.verify_quote(data, collateral, roots=[trusted], at=at)
    console.print_value(claims.to_json())
    return 0


def decode_quote(data: bytes) -> bytes:
    """A quote's bytes from raw, hex or base64 (also URL-safe) text. What is neither of the texts is taken as raw."""
    if data[:2] == b"\x03\x00":
        return data
    if (found := _HEX.fullmatch(data.strip())) is not None:
        return bytes.fromhex(found[1].decode("ascii"))
    text = b"".join(data.split()).rstrip(b"=").replace(b"-", b"+").replace(b"_", b"/")
    try:
        return base64.b64decode(text + b"=" * (-len(text) % 4), validate=True)
    except binascii.Error:
        return data


def _read(path: Path, limit: int) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise UsageError("usage", f"cannot read {path}: {error.strerror}", "Name a readable file.") from error
    if len(data) > limit:
        raise UsageError("usage", f"{path} is larger than {limit} bytes", "Name the right file.")
    return data
