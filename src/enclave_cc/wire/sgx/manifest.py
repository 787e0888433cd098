"""The enclave manifest: what an enclave of a bundle is made of, as canonical bytes that are measured.

The manifest carries the SHA-256 of every file that the enclave can open, so one measurement over it stands for
all of them (as Gramine's manifest does for its trusted files). It knows paths below the bundle's root only, no
owners and no times: the same inputs give the same bytes in any directory, on any machine.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping

from enclave_cc.errors import PeerError
from enclave_cc.record import field, record
from enclave_cc.wire.sgx import measurement
from enclave_cc.wire.sgx.measurement import PAGE_SIZE, PageFlag

VERSION = 1
ROLES = ("agent", "app")
MANIFEST_LIMIT = 32 << 20
SSA_FRAME_PAGES = 4
SSA_FRAMES = 2
# file, directory, symbolic link, and what no built bundle holds but a tampered one may: fifo, socket, devices
ENTRY_TYPES = frozenset("fdlpscb")

_SHA256 = re.compile(r"[0-9a-f]{64}")
_DEVICE = re.compile(r"[0-9]{1,10}:[0-9]{1,10}")
_MEMBERS = {"version", "role", "entrypoint", "environment", "files", "heap_size"}


@record
class File:
    """One entry: relative path, type letter, permission bits, and SHA-256 hex, link target, MAJOR:MINOR or ""."""

    path: str
    type: str
    mode: int
    value: str = ""

    def __post_init__(self) -> None:
        parts = self.path.split("/")
        if not self.path or "\0" in self.path or any(part in ("", ".", "..") for part in parts):
            raise PeerError("malformed", "a manifest path is not relative and normal")
        if self.type not in ENTRY_TYPES or len(self.type) != 1:
            raise PeerError("malformed", "a manifest entry has an unknown type")
        if not 0 <= self.mode <= 0o7777:
            raise PeerError("malformed", "a manifest entry's mode is not permission bits")
        match self.type:
            case "f":
                fits = _SHA256.fullmatch(self.value) is not None
            case "l":
                fits = bool(self.value) and "\0" not in self.value
            case "c" | "b":
                fits = _DEVICE.fullmatch(self.value) is not None
            case _:
                fits = self.value == ""
        if not fits:
            raise PeerError("malformed", "a manifest entry's value does not fit its type")


@record(kw_only=True)
class Manifest:
    """An enclave's manifest: role, what it starts with which environment, its files and its heap in bytes."""

    role: str
    entrypoint: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    files: tuple[File, ...] = ()
    heap_size: int = 256 << 20

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise PeerError("malformed", "the manifest's role is neither agent nor app")
        if not self.entrypoint or any("\0" in word for word in self.entrypoint):
            raise PeerError("malformed", "the manifest's entrypoint is empty or holds a NUL")
        for name, value in self.environment.items():
            if not name or "=" in name or "\0" in name + value:
                raise PeerError("malformed", "the manifest's environment has an impossible name or value")
        if not 0 < self.heap_size <= 1 << 40 or self.heap_size % PAGE_SIZE:
            raise PeerError("malformed", "the manifest's heap size is not a number of pages")
        paths = [entry.path for entry in self.files]
        if any(a >= b for a, b in itertools.pairwise(paths)):
            raise PeerError("malformed", "the manifest's files are not sorted, or not unique")

    @classmethod
    def parse(cls, data: bytes) -> Manifest:
        """Raises `PeerError("malformed")` unless `data` is a manifest in its one canonical form."""
        if len(data) > MANIFEST_LIMIT:
            raise PeerError("malformed", f"a manifest has at most {MANIFEST_LIMIT} bytes")
        try:
            document = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise PeerError("malformed", "the manifest is not JSON") from error
        if not isinstance(document, dict) or set(document) != _MEMBERS or document["version"] != VERSION:
            raise PeerError("malformed", f"the manifest does not have the members of version {VERSION}")
        entrypoint, environment, files = document["entrypoint"], document["environment"], document["files"]
        if not _is_strings(entrypoint) or not isinstance(environment, dict) or not _is_strings(list(environment.values())):
            raise PeerError("malformed", "the manifest's entrypoint or environment has the wrong form")
        if type(document["heap_size"]) is not int or not isinstance(files, list) or not isinstance(document["role"], str):
            raise PeerError("malformed", "the manifest's role, heap size or files have the wrong form")
        manifest = cls(
            role=document["role"],
            entrypoint=tuple(entrypoint),
            environment=environment,
            files=tuple(_parse_file(entry) for entry in files),
            heap_size=document["heap_size"],
        )
        if manifest.encode() != data:
            raise PeerError("malformed", "the manifest is not in canonical form")
        return manifest

    def encode(self) -> bytes:
        """Canonical JSON: ASCII, sorted members, no spaces, files sorted by path."""
        document = {
            "version": VERSION,
            "role": self.role,
            "entrypoint": self.entrypoint,
            "environment": dict(self.environment),
            "files": [(entry.path, entry.type, entry.mode, entry.value) for entry in self.files],
            "heap_size": self.heap_size,
        }
        return json.dumps(document, sort_keys=True, separators=(",", ":")).encode("ascii")


def measure(manifest: bytes) -> bytes:
    """MRENCLAVE (32 bytes) of the enclave that the simulated platform builds from manifest bytes.

    Layout: TCS, SSA frames, then the manifest's bytes with a closing NUL, zero-padded to a page and extended in
    full. The heap is added at run time (EDMM), so it costs no record; its size is in the manifest and in SECS.SIZE.
    """
    text = manifest + b"\0"
    text += bytes(-len(text) % PAGE_SIZE)
    first = (1 + SSA_FRAMES * SSA_FRAME_PAGES) * PAGE_SIZE
    log = measurement.MeasurementLog(
        size=1 << (first + len(text) + _heap_size(manifest) - 1).bit_length(), ssa_frame_size=SSA_FRAME_PAGES
    )
    log.add_page(0, PageFlag.TCS)
    # TCS: OSSA 8 bytes at 16, NSSA 4 bytes at 28
    tcs = bytes(16) + PAGE_SIZE.to_bytes(8, "little") + bytes(4) + SSA_FRAMES.to_bytes(4, "little")
    log.extend_page(0, tcs + bytes(PAGE_SIZE - len(tcs)))
    for offset in range(PAGE_SIZE, first, PAGE_SIZE):
        log.add_page(offset, PageFlag.REG | PageFlag.R | PageFlag.W)
        log.extend_page(offset, bytes(PAGE_SIZE))
    for start in range(0, len(text), PAGE_SIZE):
        log.add_page(first + start, PageFlag.REG | PageFlag.R)
        log.extend_page(first + start, text[start : start + PAGE_SIZE])
    return log.mr_enclave()


def _heap_size(manifest: bytes) -> int:
    # Taken by pattern: `measure` serves the simulated CPU on every start, and parsing 1,500 files costs more than
    # hashing them. Sorted members put heap_size behind the files, and JSON escapes any quote inside a string.
    found = re.findall(rb',"heap_size":([1-9][0-9]{0,12}),"role":"', manifest)
    if len(found) != 1:
        raise PeerError("malformed", "the manifest has no heap size")
    return int(found[0])


def _parse_file(entry: object) -> File:
    if not isinstance(entry, list) or len(entry) != 4:
        raise PeerError("malformed", "a manifest entry does not have four members")
    path, kind, mode, value = entry
    if not isinstance(path, str) or not isinstance(kind, str) or type(mode) is not int or not isinstance(value, str):
        raise PeerError("malformed", "a manifest entry has the wrong form")
    return File(path, kind, mode, value)


def _is_strings(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)
