"""Canonical JSON (RFC 8785) and the strict reader of JSON bodies."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from enclave_cc.errors import PeerError

# guest-components' evidence for one enclave with init-data is about 12 kB of JSON and nests five deep.
MAX_DEPTH = 32


def encode(value: object) -> bytes:
    """`value` as RFC 8785 wants it: sorted keys, no spaces, UTF-8.

    Covers text, integers, booleans, null and containers of them, which is all that RCAR hashes. RFC 8785 sorts by
    UTF-16 code units and Python by code points; the two agree below U+10000, and member names here are ASCII.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def parse_object(body: bytes, what: str) -> dict[str, Any]:
    """A JSON object. Raises `PeerError("malformed")` for anything else: other JSON, a number that is not finite, a
    repeated member name (two readers would see two messages), text that is not UTF-8, or nesting deeper than
    `MAX_DEPTH`."""
    try:
        text = body.decode()  # not by `json`, which takes halves of surrogate pairs, and other encodings
        value = json.loads(text, parse_constant=_refuse_constant, parse_float=_parse_finite, object_pairs_hook=_refuse_repeats)
        if "\\u" in text:  # an escape can spell half of a surrogate pair, which nothing can encode again
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise PeerError("malformed", f"{what} is not JSON") from error
    if not isinstance(value, dict):
        raise PeerError("malformed", f"{what} is not a JSON object")
    _check_depth(value, what)
    return value


def take_text(value: Mapping[str, Any], name: str, what: str) -> str:
    """Member `name`, which must be there and be text."""
    member = value.get(name)
    if not isinstance(member, str):
        raise PeerError("malformed", f"{what} has no text member {name!r}")
    return member


def take_object(value: Mapping[str, Any], name: str, what: str) -> dict[str, Any]:
    """Member `name`, which must be there and be an object."""
    member = value.get(name)
    if not isinstance(member, dict):
        raise PeerError("malformed", f"{what} has no object member {name!r}")
    return member


def _refuse_constant(text: str) -> None:
    raise ValueError(text)


def _parse_finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(text)
    return number


def _refuse_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("repeated member")
    return value


def _check_depth(value: object, what: str) -> None:
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            item
            for inner in level
            if isinstance(inner, dict | list)
            for item in (inner.values() if isinstance(inner, dict) else inner)
        ]
        if not level:
            return
    raise PeerError("malformed", f"{what} nests deeper than {MAX_DEPTH}")
