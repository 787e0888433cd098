"""What EREPORT and EGETKEY read and write: report body, REPORT, TARGETINFO, KEYREQUEST.

Layouts: Intel SDM volume 3D, chapter 38 (ATTRIBUTES 38.7.1, KEYREQUEST 38.17, TARGETINFO 38.16, REPORT 38.15).
All integers are little-endian. Reserved bytes must be zero: a set one means a structure that we do not know.
"""

from __future__ import annotations

import struct
from enum import IntEnum, IntFlag

from enclave_cc.errors import PeerError
from enclave_cc.record import field, record

REPORT_BODY_SIZE = 384
REPORT_SIZE = 432
TARGET_INFO_SIZE = 512
KEY_REQUEST_SIZE = 512
REPORT_DATA_SIZE = 64
CONFIG_ID_SIZE = 64

_BODY = struct.Struct("<16sIB11s16sQQ32s32s32s32s64sHHH42s16s64s")
_TARGET = struct.Struct("<32sQQBBHI8s64s384s")
_KEY_REQUEST = struct.Struct("<HHHBB16sQQ32sIH434s")


def _check_bytes(name: str, value: bytes, size: int) -> None:
    if len(value) != size:
        raise PeerError("malformed", f"{name} has {len(value)} bytes, not {size}")


def _check_uint(name: str, value: int, bits: int) -> None:
    if not 0 <= value < 1 << bits:
        raise PeerError("malformed", f"{name} does not fit {bits} bits")


def _check_zero(name: str, *reserved: bytes) -> None:
    if any(any(part) for part in reserved):
        raise PeerError("malformed", f"a reserved byte of the {name} is not zero")


class AttributeFlag(IntFlag):
    """ATTRIBUTES, low 64 bits."""

    INIT = 0x1
    DEBUG = 0x2
    MODE64BIT = 0x4
    PROVISION_KEY = 0x10
    EINITTOKEN_KEY = 0x20
    CET = 0x40
    KSS = 0x80
    AEX_NOTIFY = 0x400


class KeyName(IntEnum):
    """KEYREQUEST.KEYNAME."""

    EINITTOKEN = 0
    PROVISION = 1
    PROVISION_SEAL = 2
    REPORT = 3
    SEAL = 4


class KeyPolicy(IntFlag):
    """KEYREQUEST.KEYPOLICY."""

    MRENCLAVE = 0x01
    MRSIGNER = 0x02
    NOISVPRODID = 0x04
    CONFIGID = 0x08
    ISVFAMILYID = 0x10
    ISVEXTPRODID = 0x20


@record
class Attributes:
    """ATTRIBUTES: enclave flags and the XSAVE feature mask it runs with."""

    flags: int
    xfrm: int

    def __post_init__(self) -> None:
        _check_uint("attributes.flags", self.flags, 64)
        _check_uint("attributes.xfrm", self.xfrm, 64)

    @property
    def debug(self) -> bool:
        """Whether anybody on the machine can read the enclave's memory."""
        return bool(self.flags & AttributeFlag.DEBUG)


@record(kw_only=True)
class ReportBody:
    """The 384 bytes that EREPORT asserts about an enclave; the same in a REPORT and in a quote."""

    cpu_svn: bytes = bytes(16)
    misc_select: int = 0
    cet_attributes: int = 0
    isv_ext_prod_id: bytes = bytes(16)
    attributes: Attributes
    mr_enclave: bytes
    mr_signer: bytes
    config_id: bytes = bytes(CONFIG_ID_SIZE)
    isv_prod_id: int = 0
    isv_svn: int = 0
    config_svn: int = 0
    isv_family_id: bytes = bytes(16)
    report_data: bytes = bytes(REPORT_DATA_SIZE)

    def __post_init__(self) -> None:
        for name, size in (
            ("cpu_svn", 16),
            ("isv_ext_prod_id", 16),
            ("mr_enclave", 32),
            ("mr_signer", 32),
            ("config_id", CONFIG_ID_SIZE),
            ("isv_family_id", 16),
            ("report_data", REPORT_DATA_SIZE),
        ):
            _check_bytes(name, getattr(self, name), size)
        _check_uint("misc_select", self.misc_select, 32)
        _check_uint("cet_attributes", self.cet_attributes, 8)
        for name in ("isv_prod_id", "isv_svn", "config_svn"):
            _check_uint(name, getattr(self, name), 16)

    @classmethod
    def parse(cls, data: bytes) -> ReportBody:
        """Raises `PeerError("malformed")` unless `data` is exactly one report body with zero reserved bytes."""
        _check_bytes("report body", data, REPORT_BODY_SIZE)
        (
            cpu_svn,
            misc_select,
            cet_attributes,
            reserved1,
            isv_ext_prod_id,
            flags,
            xfrm,
            mr_enclave,
            reserved2,
            mr_signer,
            reserved3,
            config_id,
            isv_prod_id,
            isv_svn,
            config_svn,
            reserved4,
            isv_family_id,
            report_data,
        ) = _BODY.unpack(data)
        _check_zero("report body", reserved1, reserved2, reserved3, reserved4)
        return cls(
            cpu_svn=cpu_svn,
            misc_select=misc_select,
            cet_attributes=cet_attributes,
            isv_ext_prod_id=isv_ext_prod_id,
            attributes=Attributes(flags, xfrm),
            mr_enclave=mr_enclave,
            mr_signer=mr_signer,
            config_id=config_id,
            isv_prod_id=isv_prod_id,
            isv_svn=isv_svn,
            config_svn=config_svn,
            isv_family_id=isv_family_id,
            report_data=report_data,
        )

    def encode(self) -> bytes:
        """384 bytes."""
        return _BODY.pack(
            self.cpu_svn,
            self.misc_select,
            self.cet_attributes,
            b"",
            self.isv_ext_prod_id,
            self.attributes.flags,
            self.attributes.xfrm,
            self.mr_enclave,
            b"",
            self.mr_signer,
            b"",
            self.config_id,
            self.isv_prod_id,
            self.isv_svn,
            self.config_svn,
            b"",
            self.isv_family_id,
            self.report_data,
        )


@record(kw_only=True)
class Report:
    """REPORT: a body, and the CMAC that only the target enclave can check. Parsed, not verified."""

    body: ReportBody
    key_id: bytes
    mac: bytes

    def __post_init__(self) -> None:
        _check_bytes("key_id", self.key_id, 32)
        _check_bytes("mac", self.mac, 16)

    @classmethod
    def parse(cls, data: bytes) -> Report:
        """Raises `PeerError("malformed")` unless `data` is exactly 432 well-formed bytes."""
        _check_bytes("REPORT", data, REPORT_SIZE)
        return cls(body=ReportBody.parse(data[:384]), key_id=data[384:416], mac=data[416:])

    def encode(self) -> bytes:
        """432 bytes."""
        return self.body.encode() + self.key_id + self.mac


@record(kw_only=True)
class TargetInfo:
    """TARGETINFO: which enclave shall be able to check a REPORT."""

    mr_enclave: bytes
    attributes: Attributes
    cet_attributes: int = 0
    config_svn: int = 0
    misc_select: int = 0
    config_id: bytes = bytes(CONFIG_ID_SIZE)

    def __post_init__(self) -> None:
        _check_bytes("mr_enclave", self.mr_enclave, 32)
        _check_bytes("config_id", self.config_id, CONFIG_ID_SIZE)
        _check_uint("cet_attributes", self.cet_attributes, 8)
        _check_uint("config_svn", self.config_svn, 16)
        _check_uint("misc_select", self.misc_select, 32)

    @classmethod
    def of(cls, body: ReportBody) -> TargetInfo:
        """The target that a report body describes: how a receiver of a REPORT answers its sender."""
        return cls(
            mr_enclave=body.mr_enclave,
            attributes=body.attributes,
            cet_attributes=body.cet_attributes,
            config_svn=body.config_svn,
            misc_select=body.misc_select,
            config_id=body.config_id,
        )

    @classmethod
    def parse(cls, data: bytes) -> TargetInfo:
        """Raises `PeerError("malformed")` unless `data` is exactly 512 well-formed bytes."""
        _check_bytes("TARGETINFO", data, TARGET_INFO_SIZE)
        mr_enclave, flags, xfrm, cet, reserved1, config_svn, misc_select, reserved2, config_id, reserved3 = _TARGET.unpack(data)
        _check_zero("TARGETINFO", bytes([reserved1]), reserved2, reserved3)
        return cls(
            mr_enclave=mr_enclave,
            attributes=Attributes(flags, xfrm),
            cet_attributes=cet,
            config_svn=config_svn,
            misc_select=misc_select,
            config_id=config_id,
        )

    def encode(self) -> bytes:
        """512 bytes."""
        return _TARGET.pack(
            self.mr_enclave,
            self.attributes.flags,
            self.attributes.xfrm,
            self.cet_attributes,
            0,
            self.config_svn,
            self.misc_select,
            b"",
            self.config_id,
            b"",
        )


# What is sealed must stay closed to a debug twin of the enclave, so these flags always take part.
_SEAL_ATTRIBUTE_MASK = Attributes(int(AttributeFlag.INIT | AttributeFlag.DEBUG), 0)


@record(kw_only=True)
class KeyRequest:
    """KEYREQUEST: which key EGETKEY shall derive."""

    key_name: int
    key_policy: int = 0
    isv_svn: int = 0
    cet_attributes_mask: int = 0
    cpu_svn: bytes = bytes(16)
    attribute_mask: Attributes = field(default=_SEAL_ATTRIBUTE_MASK)
    key_id: bytes = bytes(32)
    misc_mask: int = 0
    config_svn: int = 0

    def __post_init__(self) -> None:
        _check_uint("key_name", self.key_name, 16)
        _check_uint("key_policy", self.key_policy, 16)
        _check_uint("isv_svn", self.isv_svn, 16)
        _check_uint("cet_attributes_mask", self.cet_attributes_mask, 8)
        _check_bytes("cpu_svn", self.cpu_svn, 16)
        _check_bytes("key_id", self.key_id, 32)
        _check_uint("misc_mask", self.misc_mask, 32)
        _check_uint("config_svn", self.config_svn, 16)

    @classmethod
    def parse(cls, data: bytes) -> KeyRequest:
        """Raises `PeerError("malformed")` unless `data` is exactly 512 well-formed bytes."""
        _check_bytes("KEYREQUEST", data, KEY_REQUEST_SIZE)
        name, policy, isv_svn, cet, reserved1, cpu_svn, flags, xfrm, key_id, misc_mask, config_svn, reserved2 = _KEY_REQUEST.unpack(
            data
        )
        _check_zero("KEYREQUEST", bytes([reserved1]), reserved2)
        return cls(
            key_name=name,
            key_policy=policy,
            isv_svn=isv_svn,
            cet_attributes_mask=cet,
            cpu_svn=cpu_svn,
            attribute_mask=Attributes(flags, xfrm),
            key_id=key_id,
            misc_mask=misc_mask,
            config_svn=config_svn,
        )

    def encode(self) -> bytes:
        """512 bytes."""
        return _KEY_REQUEST.pack(
            self.key_name,
            self.key_policy,
            self.isv_svn,
            self.cet_attributes_mask,
            0,
            self.cpu_svn,
            self.attribute_mask.flags,
            self.attribute_mask.xfrm,
            self.key_id,
            self.misc_mask,
            self.config_svn,
            b"",
        )
