"""A declarative codec for the part of protocol buffers (proto3) that our services need.

A message is a record whose fields say their number and kind:

    @record
    class KeyValue:
        key: str = string(1)
        value: str = string(2)

`encode(message)` gives bytes in field-number order, defaults left out, map keys sorted: equal messages have equal
bytes, those of the protobuf runtimes (which order map entries each in their own way). `decode(cls, data)` reads
hostile bytes: it raises `PeerError` and nothing else, skips unknown fields (and known numbers with a foreign wire
type, as the runtimes do), takes packed and unpacked scalars, lets the last of repeated singular scalars win and
merges repeated singular messages. Groups (wire types 3, 4) are refused.

Source: Protocol Buffers, "Encoding" and the proto3 language guide.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import Any, TypeVar, cast

from enclave_cc import record as records
from enclave_cc.errors import PeerError

# Deeper nesting than any of our messages has; the runtimes stop at 100.
MAX_DEPTH = 32
# Items in one repeated field or map: bounds what a 4 MiB message of two-byte items can make us allocate.
MAX_ITEMS = 65_536
_MAX_FIELD_NUMBER = (1 << 29) - 1
_U64 = (1 << 64) - 1

T = TypeVar("T")


class Kind(IntEnum):
    """What a field holds."""

    INT32 = 1
    INT64 = 2
    UINT32 = 3
    UINT64 = 4
    BOOL = 5
    DOUBLE = 6
    STRING = 7
    BYTES = 8
    MESSAGE = 9
    STRING_MAP = 10


class Wire(IntEnum):
    """The wire types (low three bits of a tag)."""

    VARINT = 0
    FIXED64 = 1
    SIZED = 2
    FIXED32 = 5


_VARINTS = frozenset({Kind.INT32, Kind.INT64, Kind.UINT32, Kind.UINT64, Kind.BOOL})
_DEFAULTS: dict[Kind, object] = {Kind.BOOL: False, Kind.DOUBLE: 0.0, Kind.STRING: "", Kind.BYTES: b""}


@records.record
class Field:
    """One field's number and kind; `message` is the class behind MESSAGE."""

    number: int
    kind: Kind
    repeated: bool = False
    message: type | None = None


def _declare(number: int, kind: Kind, *, repeated: bool = False, message: type | None = None) -> Any:
    described = {"pb": Field(number, kind, repeated, message)}
    if kind is Kind.STRING_MAP:
        return records.field(default_factory=dict, metadata=described)
    default: object = () if repeated else None if kind is Kind.MESSAGE else _DEFAULTS.get(kind, 0)
    return records.field(default=default, metadata=described)


def string(number: int, *, repeated: bool = False) -> Any:
    return _declare(number, Kind.STRING, repeated=repeated)


def bytestring(number: int, *, repeated: bool = False) -> Any:
    return _declare(number, Kind.BYTES, repeated=repeated)


def int32(number: int, *, repeated: bool = False) -> Any:
    """Also for enums: proto3 enums are open, an unknown value is a value."""
    return _declare(number, Kind.INT32, repeated=repeated)


def int64(number: int, *, repeated: bool = False) -> Any:
    return _declare(number, Kind.INT64, repeated=repeated)


def uint32(number: int, *, repeated: bool = False) -> Any:
    return _declare(number, Kind.UINT32, repeated=repeated)


def uint64(number: int, *, repeated: bool = False) -> Any:
    return _declare(number, Kind.UINT64, repeated=repeated)


def boolean(number: int) -> Any:
    return _declare(number, Kind.BOOL)


def double(number: int, *, repeated: bool = False) -> Any:
    return _declare(number, Kind.DOUBLE, repeated=repeated)


def message(number: int, cls: type, *, repeated: bool = False) -> Any:
    """A singular message is None when absent; an empty message that is present is encoded."""
    return _declare(number, Kind.MESSAGE, repeated=repeated, message=cls)


def string_map(number: int) -> Any:
    return _declare(number, Kind.STRING_MAP)


# One plan per class, made at first use: the fields in number order, and by number.
_plans: dict[type, tuple[tuple[tuple[str, Field], ...], dict[int, tuple[str, Field]]]] = {}


def _plan(cls: type) -> tuple[tuple[tuple[str, Field], ...], dict[int, tuple[str, Field]]]:
    found = _plans.get(cls)
    if found is None:
        declared = [(f.name, cast(Field, f.metadata["pb"])) for f in records.fields(cls)]
        declared.sort(key=lambda item: item[1].number)
        by_number = {field.number: (name, field) for name, field in declared}
        if len(by_number) != len(declared):
            raise TypeError(f"{cls.__name__} uses a field number twice")
        found = _plans[cls] = (tuple(declared), by_number)
    return found


# ---------------------------------------------------------------- encode


def encode(value: object) -> bytes:
    """The bytes of a message. Raises ValueError or TypeError for values outside their kind: our bug, not a peer's."""
    out = bytearray()
    _encode_into(out, value)
    return bytes(out)


def _encode_into(out: bytearray, value: object) -> None:
    for name, field in _plan(type(value))[0]:
        content = getattr(value, name)
        if field.kind is Kind.STRING_MAP:
            for key in sorted(content):
                entry = bytearray()
                for number, text in ((1, key), (2, content[key])):
                    # A map entry carries both members, empty or not, as the runtimes write it.
                    _put_sized(entry, number, _text(text))
                _put_sized(out, field.number, entry)
        elif field.repeated and (field.kind in _VARINTS or field.kind is Kind.DOUBLE):
            if content:
                packed = bytearray()
                for item in content:
                    _put_scalar(packed, field.kind, item)
                _put_sized(out, field.number, packed)
        elif field.repeated:
            for item in content:
                _put_field(out, field, item)
        elif field.kind is Kind.MESSAGE:
            if content is not None:
                _put_field(out, field, content)
        elif content or (field.kind is Kind.DOUBLE and struct.pack("<d", content) != bytes(8)):
            _put_field(out, field, content)


def _put_field(out: bytearray, field: Field, item: Any) -> None:
    if field.kind is Kind.STRING:
        _put_sized(out, field.number, _text(item))
    elif field.kind is Kind.BYTES:
        _put_sized(out, field.number, item)
    elif field.kind is Kind.MESSAGE:
        inner = bytearray()
        _encode_into(inner, item)
        _put_sized(out, field.number, inner)
    else:
        wire = Wire.FIXED64 if field.kind is Kind.DOUBLE else Wire.VARINT
        _put_varint(out, field.number << 3 | wire)
        _put_scalar(out, field.kind, item)


def _text(text: str) -> bytes:
    return text.encode("utf-8")  # strict: a lone surrogate is a ValueError here, not a broken message there


def _put_sized(out: bytearray, number: int, content: bytes | bytearray) -> None:
    _put_varint(out, number << 3 | Wire.SIZED)
    _put_varint(out, len(content))
    out += content


_RANGES: dict[Kind, tuple[int, int]] = {
    Kind.INT32: (-(1 << 31), (1 << 31) - 1),
    Kind.INT64: (-(1 << 63), (1 << 63) - 1),
    Kind.UINT32: (0, (1 << 32) - 1),
    Kind.UINT64: (0, _U64),
    Kind.BOOL: (0, 1),
}


def _put_scalar(out: bytearray, kind: Kind, item: Any) -> None:
    if kind is Kind.DOUBLE:
        out += struct.pack("<d", item)
        return
    low, high = _RANGES[kind]
    if not low <= item <= high:
        raise ValueError(f"{item} is outside {kind.name}")
    _put_varint(out, int(item) & _U64)


def _put_varint(out: bytearray, value: int) -> None:
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)


# ---------------------------------------------------------------- decode


def decode(cls: type[T], data: bytes | bytearray | memoryview) -> T:
    """Reads one message of `cls`. Raises `PeerError("malformed")`."""
    return _decode(cls, memoryview(data), 0)


def _malformed(what: str) -> PeerError:
    return PeerError("malformed", f"protocol buffer message: {what}")


def _decode(cls: type[T], data: memoryview, depth: int) -> T:
    if depth > MAX_DEPTH:
        raise _malformed(f"nested deeper than {MAX_DEPTH}")
    by_number = _plan(cls)[1]
    values: dict[str, Any] = {}
    pending: dict[str, tuple[type, bytearray]] = {}  # singular messages: concatenation is their merge
    at, end = 0, len(data)
    while at < end:
        tag, at = _varint(data, at, end)
        number, wire = tag >> 3, tag & 7
        if not 1 <= number <= _MAX_FIELD_NUMBER:
            raise _malformed("field number out of range")
        content: int | memoryview
        if wire == Wire.VARINT:
            content, at = _varint(data, at, end)
        elif wire == Wire.SIZED:
            size, at = _varint(data, at, end)
            content, at = _slice(data, at, size, end)
        elif wire == Wire.FIXED64:
            content, at = _slice(data, at, 8, end)
        elif wire == Wire.FIXED32:
            content, at = _slice(data, at, 4, end)
        else:
            raise _malformed(f"wire type {wire} is not supported")
        known = by_number.get(number)
        if known is not None:
            _take(values, pending, known[0], known[1], wire, content, depth)
    for name, (inner, merged) in pending.items():
        values[name] = _decode(inner, memoryview(merged), depth + 1)
    return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})


def _take(
    values: dict[str, Any],
    pending: dict[str, tuple[type, bytearray]],
    name: str,
    field: Field,
    wire: int,
    content: int | memoryview,
    depth: int,
) -> None:
    """Stores one occurrence of a known field; a foreign wire type leaves it unknown, hence skipped."""
    kind = field.kind
    if kind in _VARINTS or kind is Kind.DOUBLE:
        own = Wire.FIXED64 if kind is Kind.DOUBLE else Wire.VARINT
        if wire == own:
            scalar = _double(content) if kind is Kind.DOUBLE else _integer(kind, cast(int, content))
            if field.repeated:
                _append(values, name, scalar)
            else:
                values[name] = scalar
        elif wire == Wire.SIZED and field.repeated:
            _unpack(values, name, kind, cast(memoryview, content))
        return
    if wire != Wire.SIZED:
        return
    sized = cast(memoryview, content)
    if kind is Kind.STRING_MAP:
        entry = _decode(_MapEntry, sized, depth + 1)
        mapping = values.setdefault(name, {})
        mapping[entry.key] = entry.value
        if len(mapping) > MAX_ITEMS:
            raise _malformed(f"more than {MAX_ITEMS} items")
    elif kind is Kind.MESSAGE:
        inner = cast(type, field.message)
        if field.repeated:
            _append(values, name, _decode(inner, sized, depth + 1))
        else:
            pending.setdefault(name, (inner, bytearray()))[1].extend(sized)
    else:
        item: str | bytes = bytes(sized)
        if kind is Kind.STRING:
            try:
                item = str(sized, "utf-8")
            except UnicodeDecodeError as error:
                raise _malformed("a string is not UTF-8") from error
        if field.repeated:
            _append(values, name, item)
        else:
            values[name] = item


def _append(values: dict[str, Any], name: str, item: object) -> None:
    items = values.setdefault(name, [])
    items.append(item)
    if len(items) > MAX_ITEMS:
        raise _malformed(f"more than {MAX_ITEMS} items")


def _unpack(values: dict[str, Any], name: str, kind: Kind, packed: memoryview) -> None:
    at, end = 0, len(packed)
    values.setdefault(name, [])
    while at < end:
        if kind is Kind.DOUBLE:
            eight, at = _slice(packed, at, 8, end)
            _append(values, name, _double(eight))
        else:
            number, at = _varint(packed, at, end)
            _append(values, name, _integer(kind, number))


def _varint(data: memoryview, at: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= end:
            raise _malformed("cut short")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & _U64, at
        shift += 7
        if shift >= 70:
            raise _malformed("a varint is longer than ten bytes")


def _slice(data: memoryview, at: int, size: int, end: int) -> tuple[memoryview, int]:
    if size > end - at:
        raise _malformed("cut short")
    return data[at : at + size], at + size


def _integer(kind: Kind, raw: int) -> int | bool:
    """Truncates as the runtimes do: an int32 written as 64 bits keeps its low half."""
    if kind is Kind.BOOL:
        return raw != 0
    if kind is Kind.UINT64:
        return raw
    if kind is Kind.UINT32:
        return raw & 0xFFFFFFFF
    bits = 32 if kind is Kind.INT32 else 64
    raw &= (1 << bits) - 1
    return raw - (1 << bits) if raw >> (bits - 1) else raw


def _double(content: int | memoryview) -> float:
    return float(struct.unpack("<d", cast(memoryview, content))[0])


@records.record
class _MapEntry:
    key: str = string(1)
    value: str = string(2)
