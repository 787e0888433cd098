"""Report structures: offsets against a real quote and the SDM's tables."""

from __future__ import annotations

from pathlib import Path

import pytest

from enclave_cc.errors import PeerError
from enclave_cc.wire.sgx.report import AttributeFlag, Attributes, KeyRequest, Report, ReportBody, TargetInfo

VECTORS = Path(__file__).parents[3] / "vectors/sgx"
MARKED = ReportBody(
    cpu_svn=b"\x01" * 16,
    misc_select=0x02020202,
    cet_attributes=3,
    isv_ext_prod_id=b"\x04" * 16,
    attributes=Attributes(0x0505050505050505, 0x0606060606060606),
    mr_enclave=b"\x07" * 32,
    mr_signer=b"\x08" * 32,
    config_id=b"\x09" * 64,
    isv_prod_id=0x0A0A,
    isv_svn=0x0B0B,
    config_svn=0x0C0C,
    isv_family_id=b"\x0d" * 16,
    report_data=b"\x0e" * 64,
)


def runs(data: bytes) -> list[tuple[int, int, int]]:
    """(offset, size, value) of each run of equal bytes."""
    found: list[tuple[int, int, int]] = []
    for offset, value in enumerate(data):
        if found and found[-1][2] == value:
            found[-1] = (found[-1][0], found[-1][1] + 1, value)
        else:
            found.append((offset, 1, value))
    return [run for run in found if run[2]]


def test_report_body_offsets_are_the_sdm_s() -> None:
    assert runs(MARKED.encode()) == [
        (0, 16, 1),
        (16, 4, 2),
        (20, 1, 3),
        (32, 16, 4),
        (48, 8, 5),
        (56, 8, 6),
        (64, 32, 7),
        (128, 32, 8),
        (192, 64, 9),
        (256, 2, 0xA),
        (258, 2, 0xB),
        (260, 2, 0xC),
        (304, 16, 0xD),
        (320, 64, 0xE),
    ]


def test_report_offsets() -> None:
    report = Report(body=MARKED, key_id=b"\xf1" * 32, mac=b"\xf2" * 16)
    assert runs(report.encode())[-2:] == [(384, 32, 0xF1), (416, 16, 0xF2)]
    assert Report.parse(report.encode()) == report


def test_target_info_offsets() -> None:
    target = TargetInfo.of(MARKED)
    assert runs(target.encode()) == [
        (0, 32, 7),
        (32, 8, 5),
        (40, 8, 6),
        (48, 1, 3),
        (50, 2, 0xC),
        (52, 4, 2),
        (64, 64, 9),
    ]
    assert len(target.encode()) == 512
    assert TargetInfo.parse(target.encode()) == target


def test_key_request_offsets() -> None:
    request = KeyRequest(
        key_name=0x0101,
        key_policy=0x0202,
        isv_svn=0x0303,
        cet_attributes_mask=4,
        cpu_svn=b"\x05" * 16,
        attribute_mask=Attributes(0x0606060606060606, 0x0707070707070707),
        key_id=b"\x08" * 32,
        misc_mask=0x09090909,
        config_svn=0x0A0A,
    )
    assert runs(request.encode()) == [
        (0, 2, 1),
        (2, 2, 2),
        (4, 2, 3),
        (6, 1, 4),
        (8, 16, 5),
        (24, 8, 6),
        (32, 8, 7),
        (40, 32, 8),
        (72, 4, 9),
        (76, 2, 0xA),
    ]
    assert len(request.encode()) == 512
    assert KeyRequest.parse(request.encode()) == request


def test_a_real_enclave_s_body() -> None:
    body = ReportBody.parse((VECTORS / "trustee-debug-quote.bin").read_bytes()[48:432])
    assert body.mr_enclave.hex() == "8f173e4613ff05c52aaf04162d234edae8c9977eae47eb2299ae16a553011c68"
    assert body.mr_signer.hex() == "83d719e77deaca1470f6baf62a4d774303c899db69020f9c70ee1dfc08c7ce9e"
    assert body.attributes == Attributes(AttributeFlag.INIT | AttributeFlag.DEBUG | AttributeFlag.MODE64BIT, 0xE7)
    assert body.attributes.debug
    assert body.misc_select == 1
    assert body.report_data == b"test".ljust(64, b"\0")


@pytest.mark.parametrize("offset", [21, 31, 96, 127, 160, 191, 262, 303])
def test_a_set_reserved_byte_is_refused(offset: int) -> None:
    data = bytearray(MARKED.encode())
    data[offset] = 1
    with pytest.raises(PeerError, match="reserved"):
        ReportBody.parse(bytes(data))


@pytest.mark.parametrize("kind", [ReportBody, Report, TargetInfo, KeyRequest])
def test_sizes_are_exact(kind: type[ReportBody | Report | TargetInfo | KeyRequest]) -> None:
    for size in (0, 383, 385, 431, 433, 511, 513):
        with pytest.raises(PeerError) as caught:
            kind.parse(bytes(size))
        assert caught.value.code == "malformed"
