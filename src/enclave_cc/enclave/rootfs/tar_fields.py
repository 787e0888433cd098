"""The fields of tar headers: numbers, paths, pax records and sparse maps. Functions of bytes; raise only `PeerError`.

Sources: POSIX.1-2017 pax "Interchange Format"; GNU tar manual, "Basic Tar Format" and "Storing Sparse Files"; where they
leave room we read as Go's archive/tar does, because that is what every OCI tool unpacks with.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

from enclave_cc.enclave.rootfs.entries import Extent
from enclave_cc.errors import PeerError, foreign

MAX_PATH: Final = 4095  # PATH_MAX without its NUL
MAX_NAME: Final = 255  # NAME_MAX
MAX_SPARSE_EXTENTS: Final = 1 << 18  # per file; a map of 256 Ki segments is 6 MiB of tar
MAX_SIZE: Final = (1 << 63) - 1
MAX_ID: Final = (1 << 32) - 2  # chown(2) reads 2^32-1 as "leave it"
_MAX_MTIME: Final = (1 << 63) - 1
_BILLION: Final = 1_000_000_000


def broken(what: str) -> PeerError:
    return PeerError("layer-broken", f"tar: {what}")


def parse_number(raw: bytes) -> int:
    """A header's numeric field: octal text, padded with spaces or NULs, or base-256 (GNU) when its top bit is set."""
    digits = raw.strip(b" \0")
    if digits.isdigit():
        try:
            return int(digits, 8)
        except ValueError:
            raise broken(f"number {foreign(digits)!r}") from None
    if not digits:
        return 0
    if raw[0] & 0x80:
        value = int.from_bytes(raw, "big") & ~(1 << (8 * len(raw) - 1))
        return value - (1 << (8 * len(raw) - 1)) if raw[0] & 0x40 else value
    first = digits.partition(b"\0")[0].strip(b" ")
    if first == digits:
        raise broken(f"number {foreign(digits)!r}")
    return parse_number(first)


# Modes and owners repeat from header to header; a hit costs a tenth of a parse.
parse_repeated_number = lru_cache(maxsize=1024)(parse_number)


def parse_decimal(raw: bytes, limit: int = MAX_SIZE) -> int:
    """A non-negative decimal of a pax record, at most `limit`."""
    if not raw.isdigit() or len(raw) > 20 or (value := int(raw)) > limit:
        raise broken(f"pax number {foreign(raw)!r}")
    return value


def parse_pax_time(raw: bytes) -> int:
    """`[-]seconds[.fraction]` to nanoseconds, cut towards zero below them, confined to 64 bits."""
    negative = raw.startswith(b"-")
    seconds, _, fraction = raw[negative:].partition(b".")
    if not seconds.isdigit() or (fraction and not fraction.isdigit()) or len(raw) > 64:
        raise broken(f"pax time {foreign(raw)!r}")
    value = int(seconds) * _BILLION + int(fraction[:9].ljust(9, b"0"))
    return confine_time(-value if negative else value)


def confine_time(nanoseconds: int) -> int:
    return max(-_MAX_MTIME - 1, min(nanoseconds, _MAX_MTIME))


def clean_path(path: bytes) -> bytes:
    """Relative, no `.`, no empty component, `..` confined lexically to the root; b"" is the root (umoci's CleanPath)."""
    if b"/." in path or b"//" in path or path[:1] in (b".", b"/") or path[-1:] == b"/":
        parts: list[bytes] = []
        for part in path.split(b"/"):
            if part == b"..":
                if parts:
                    parts.pop()
            elif part and part != b".":
                parts.append(part)
        path = b"/".join(parts)
    if len(path) > MAX_NAME and (len(path) > MAX_PATH or max(map(len, path.split(b"/"))) > MAX_NAME):
        raise broken("a path is too long")
    return path


def parse_pax(body: bytes) -> list[tuple[bytes, bytes]]:
    """The records of a pax header's body, in order."""
    records = []
    at, end = 0, len(body)
    while at < end:
        space = body.find(b" ", at, at + 20)
        digits = body[at:space] if space > at else b""
        stop = at + int(digits) if digits.isdigit() else -1
        if stop <= max(space, at) or stop > end or body[stop - 1] != 0x0A:  # a record that goes back would never end
            raise broken("pax record")
        key, equals, value = body[space + 1 : stop - 1].partition(b"=")
        if not equals or not key or b"\0" in key:
            raise broken("pax record")
        records.append((key, value))
        at = stop
    return records


def check_sparse(segments: list[tuple[int, int]], size: int, stored: int, body_at: int) -> tuple[Extent, ...]:
    """Extents of a sparse file from its map of (file offset, length).

    1. no segment begins before the end of the one before it;
    2. none ends after the file does;
    3. together they are exactly the stored bytes.
    """
    extents: list[Extent] = []
    last = total = 0
    for offset, length in segments:
        if offset < last or length < 0:  # 1
            raise broken("sparse map out of order")
        last = offset + length
        if last > size:  # 2
            raise broken("sparse map past the end of the file")
        if length:
            extents.append((body_at + total, length, offset))
            total += length
    if total != stored:  # 3
        raise broken("sparse map and stored size differ")
    return tuple(extents)


def parse_sparse_text(numbers: list[bytes]) -> list[tuple[int, int]]:
    """Pairs of decimals: offset, length, offset, ... (pax 0.1 map, pax 0.0 records, pax 1.0 body)."""
    if len(numbers) % 2 or len(numbers) > 2 * MAX_SPARSE_EXTENTS:
        raise broken("sparse map")
    values = [parse_decimal(n) for n in numbers]
    return list(zip(values[::2], values[1::2], strict=True))


def parse_sparse_slots(raw: bytes) -> list[tuple[int, int]]:
    """GNU old-format slots of 24 bytes; the first empty one ends the list."""
    segments = []
    for at in range(0, len(raw) - 23, 24):
        if raw[at] == 0:
            break
        segments.append((parse_number(raw[at : at + 12]), parse_number(raw[at + 12 : at + 24])))
    return segments
