"""MRENCLAVE, against a known answer and against the SDM's records written out by hand."""

from __future__ import annotations

import hashlib
import struct

import pytest

from enclave_cc.errors import PeerError
from enclave_cc.wire.sgx.manifest import File, Manifest, measure
from enclave_cc.wire.sgx.measurement import MeasurementLog, PageFlag

MANIFEST = Manifest(
    role="agent",
    entrypoint=("/usr/bin/python3", "-I"),
    environment={"PATH": "/usr/bin"},
    files=(
        File("bin", "l", 0o777, "usr/bin"),
        File("usr", "d", 0o755),
        File("usr/x", "f", 0o644, hashlib.sha256(b"x").hexdigest()),
    ),
    heap_size=1 << 20,
)


def test_known_answer() -> None:
    log = MeasurementLog(size=0x2000, ssa_frame_size=1)
    log.add_page(0, PageFlag.REG | PageFlag.R | PageFlag.W)
    log.extend_page(0, bytes(4096))
    assert log.mr_enclave().hex() == "1f2cf80bd03ffd8bfac33f7cba128aff511c3af666b93bb66e7ef718418bdade"


def test_records_are_those_of_the_sdm() -> None:
    content = bytes(range(256)) * 16
    log = MeasurementLog(size=0x4000, ssa_frame_size=4)
    log.add_page(0x1000, PageFlag.TCS)
    log.extend_page(0x1000, content)
    records = [
        b"ECREATE\0" + struct.pack("<IQ", 4, 0x4000) + bytes(44),
        b"EADD\0\0\0\0" + struct.pack("<QQ", 0x1000, 0x100) + bytes(40),
    ]
    for start in range(0, 4096, 256):
        records += [b"EEXTEND\0" + struct.pack("<Q", 0x1000 + start) + bytes(48), content[start : start + 256]]
    assert all(len(record) in (64, 256) for record in records)
    assert log.mr_enclave() == hashlib.sha256(b"".join(records)).digest()


@pytest.mark.parametrize("size", [0, 4096, 0x3000])
def test_an_impossible_enclave_size_is_our_bug(size: int) -> None:
    with pytest.raises(ValueError, match="power of two"):
        MeasurementLog(size=size, ssa_frame_size=1)


@pytest.mark.parametrize("offset", [-4096, 1, 0x2000])
def test_a_page_outside_the_enclave_is_our_bug(offset: int) -> None:
    with pytest.raises(ValueError, match="page"):
        MeasurementLog(size=0x2000, ssa_frame_size=1).add_page(offset, PageFlag.REG)


def test_every_member_of_the_manifest_is_measured() -> None:
    from dataclasses import replace

    variants = [
        MANIFEST,
        replace(MANIFEST, role="app"),
        replace(MANIFEST, entrypoint=("/usr/bin/python3",)),
        replace(MANIFEST, environment={"PATH": "/bin"}),
        replace(MANIFEST, heap_size=2 << 20),
        replace(MANIFEST, files=MANIFEST.files[:2]),
        replace(MANIFEST, files=(*MANIFEST.files[:2], File("usr/x", "f", 0o755, MANIFEST.files[2].value))),
        replace(MANIFEST, files=(*MANIFEST.files[:2], File("usr/x", "f", 0o644, hashlib.sha256(b"y").hexdigest()))),
    ]
    assert len({measure(manifest.encode()) for manifest in variants}) == len(variants)


def test_measuring_what_is_no_manifest() -> None:
    with pytest.raises(PeerError):
        measure(b"{}")


def test_a_long_manifest_is_measured_to_its_end() -> None:
    files = tuple(File(f"f{i:05}", "f", 0o644, "0" * 64) for i in range(500))
    changed = (*files[:-1], File(files[-1].path, "f", 0o644, "0" * 63 + "1"))
    a, b = (Manifest(role="app", entrypoint=("/x",), files=f).encode() for f in (files, changed))
    assert len(a) > 10 * 4096
    assert measure(a) != measure(b)
