"""RVPS messages: what Trustee's reference value provider service takes, and each of its extractors.

    {"version": "0.1.0", "type": "sample" | "swid" | "corim", "payload": b64}

Trustee `rvps/src/lib.rs`, `rvps/src/extractors` (August 2026). The extractors name values as upstream's do, so that one
policy serves both. Upstream verifies no signature of these forms, and neither does this: who sends a message is an
administrator, and vouches for it. Its `in-toto` extractor is gone; signed statements of ours are `reference.statement`.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Mapping
from typing import Any

from enclave_cc.errors import PeerError, foreign
from enclave_cc.owner.reference.values import ReferenceValue
from enclave_cc.record import replace
from enclave_cc.wire.rcar import canonical

VERSION = "0.1.0"
_WHAT = "the RVPS message"


def parse_message(body: bytes) -> list[ReferenceValue]:
    """The values of a message. A list becomes members, anything else a whole value. Raises `PeerError("malformed")`."""
    message = canonical.parse_object(body, _WHAT)
    if message.get("version", VERSION) != VERSION:  # upstream's default
        raise PeerError("malformed", f"{_WHAT} has version {foreign(message.get('version'))}, this is {VERSION}")
    kind = message.get("type")
    extract = EXTRACTORS.get(kind) if isinstance(kind, str) else None
    if extract is None:
        raise PeerError("malformed", f"{_WHAT} is of type {foreign(kind)}; {', '.join(EXTRACTORS)} are known")
    try:
        payload = base64.b64decode(canonical.take_text(message, "payload", _WHAT), validate=True)
    except (binascii.Error, ValueError) as error:
        raise PeerError("malformed", f"the payload of {_WHAT} is not base64") from error
    values: list[ReferenceValue] = []
    for name, value in extract(payload).items():
        if isinstance(value, list) and value:
            values += [ReferenceValue(name, item) for item in value]
        else:
            values.append(ReferenceValue(name, value, member=False))
    return [replace(value, source={"rvps": kind}) for value in values]


def _extract_sample(payload: bytes) -> Mapping[str, Any]:
    """Any names and JSON values."""
    return canonical.parse_object(payload, f"the payload of {_WHAT}")


def _extract_swid(payload: bytes) -> Mapping[str, Any]:
    from enclave_cc.owner.reference import swid  # XML, for the few who have such tags

    return swid.extract(payload)


def _extract_corim(payload: bytes) -> Mapping[str, Any]:
    from enclave_cc.owner.reference import corim  # CBOR, likewise

    return corim.extract(payload)


EXTRACTORS: Mapping[str, Callable[[bytes], Mapping[str, Any]]] = {
    "sample": _extract_sample,
    "swid": _extract_swid,
    "corim": _extract_corim,
}
