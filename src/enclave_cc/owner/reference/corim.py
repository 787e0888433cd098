"""Reference values of a CoRIM (draft-ietf-rats-corim): digests and raw values of the reference triples in its CoMIDs.

Trustee `rvps/src/extractors/corim`: a value is named by whatever identifies it, joined with slashes: vendor and model of
the environment, the measurement's key, name and serial number, then "digests" (a list of hex) or "raw_bytes" (hex).
A signed CoRIM (COSE_Sign1) is read like an unsigned one: upstream does not verify it either.
"""

from __future__ import annotations

import io
import uuid
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

import cbor2

from enclave_cc.errors import PeerError, foreign

MAX_SIZE = 1024 * 1024
_MAX_DEPTH = 32
_WHAT = "the CoRIM"

# CBOR tags
_SIGN1, _CORIM, _UNSIGNED, _SIGNED, _COMID, _BYTES = 18, 500, 501, 502, 506, 560
# Tags that a decoder acts on, and that a CoRIM has no use for: cycles, huge numbers, regular expressions, addresses, dates.
_REFUSED_TAGS = (0, 1, 2, 3, 4, 5, 25, 28, 29, 30, 35, 36, 52, 54, 100, 256, 258, 260, 261, 1004, 43000)

# Members of the maps, by the draft's names.
_TAGS = 1  # corim-map
_TRIPLES, _REFERENCE_TRIPLES = 4, 0  # concise-mid-tag, triples-map
_CLASS, _VENDOR, _MODEL = 0, 1, 2  # environment-map, class-map
_KEY, _VALUES = 0, 1  # measurement-map
_DIGESTS, _RAW, _SERIAL, _NAME = 2, 4, 8, 11  # measurement-values-map


def extract(payload: bytes) -> Mapping[str, Any]:
    """Values by name. Raises `PeerError("malformed")`."""
    document = _open(_decode(payload))
    tags = document.get(_TAGS) if isinstance(document, Mapping) else None
    if not isinstance(tags, list | tuple):
        raise _malformed("has no list of tags")
    values: dict[str, Any] = {}
    for tag in tags:
        comid = tag.value if isinstance(tag, cbor2.CBORTag) and tag.tag == _COMID else None
        if comid is None:
            continue  # CoSWID, CoTL and what others define: nothing that upstream reads
        if isinstance(comid, bytes):
            comid = _decode(comid)
        for name, value in _read_comid(comid):
            # Two measurements may have one name; as members of one list both count, where upstream keeps the last.
            if isinstance(value, list) and isinstance(values.get(name), list):
                values[name] = list(dict.fromkeys([*values[name], *value]))
            else:
                values[name] = value
    return values


def _open(value: Any) -> Any:
    """The corim-map inside tags 500 and 502, a COSE_Sign1 (18) and 501."""
    for _ in range(4):
        if not isinstance(value, cbor2.CBORTag):
            return value
        if value.tag == _SIGN1:
            parts = value.value
            if not isinstance(parts, list | tuple) or len(parts) != 4 or not isinstance(parts[2], bytes):
                raise _malformed("is no COSE_Sign1 with its payload inside")
            value = _decode(parts[2])
        elif value.tag in (_CORIM, _SIGNED, _UNSIGNED):
            value = value.value
        else:
            raise _malformed(f"has the tag {value.tag}, which is none of a CoRIM's")
    raise _malformed("is wrapped too often")


def _read_comid(comid: Any) -> Iterator[tuple[str, Any]]:
    triples = _member(_member(comid, _TRIPLES), _REFERENCE_TRIPLES)
    for triple in triples if isinstance(triples, list | tuple) else ():
        if not isinstance(triple, list | tuple) or len(triple) != 2:
            raise _malformed("has a reference triple that is no pair")
        environment, measurements = triple
        kind = _member(environment, _CLASS)
        path = [part for part in (_member(kind, _VENDOR), _member(kind, _MODEL)) if isinstance(part, str)]
        for measurement in measurements if isinstance(measurements, list | tuple) else ():
            yield from _read_measurement(measurement, path)


def _read_measurement(measurement: Any, base: list[str]) -> Iterator[tuple[str, Any]]:
    path = list(base)
    match _member(measurement, _KEY):
        case str() as text:
            path.append(text)
        case bool():
            pass
        case int() as number if number >= 0:
            path.append(f"claim{number}")
        case uuid.UUID() as key:
            path.append(str(key))
        case _:
            pass  # other kinds of key name nothing, upstream says
    values = _member(measurement, _VALUES)
    path += [part for part in (_member(values, _NAME), _member(values, _SERIAL)) if isinstance(part, str)]
    digests = _member(values, _DIGESTS)
    if isinstance(digests, list | tuple):
        found = []
        for digest in digests:
            if not isinstance(digest, list | tuple) or len(digest) != 2 or not isinstance(digest[1], bytes):
                raise _malformed("has a digest that is no pair of algorithm and bytes")
            found.append(digest[1].hex())
        yield "/".join([*path, "digests"]), found
    raw = _member(values, _RAW)
    if isinstance(raw, cbor2.CBORTag) and raw.tag == _BYTES and isinstance(raw.value, bytes):
        yield "/".join([*path, "raw_bytes"]), raw.value.hex()


def _member(value: Any, key: int) -> Any:
    return value.get(key) if isinstance(value, Mapping) else None


def _refuse_tag(*_: object) -> NoReturn:
    raise _malformed("has a CBOR tag that no CoRIM needs")


_DECODERS = dict.fromkeys(_REFUSED_TAGS, _refuse_tag)


def _decode(data: bytes) -> Any:
    """One CBOR item and nothing behind it."""
    if len(data) > MAX_SIZE:
        raise _malformed(f"is larger than {MAX_SIZE} bytes")
    stream = io.BytesIO(data)
    try:
        value = cbor2.CBORDecoder(
            stream, semantic_decoders=_DECODERS, max_depth=_MAX_DEPTH, allow_duplicate_keys=False, read_size=1
        ).decode()
    except (cbor2.CBORError, ValueError, TypeError, OverflowError, RecursionError, MemoryError) as error:
        if isinstance(error.__cause__, PeerError):
            raise error.__cause__ from error
        raise PeerError("malformed", f"{_WHAT} is not CBOR: {foreign(error)}") from error
    if stream.read(1):
        raise _malformed("goes on behind its end")
    return value


def _malformed(what: str) -> PeerError:
    return PeerError("malformed", f"{_WHAT} {what}")
