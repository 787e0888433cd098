"""The four messages, byte by byte as docs/formats/handover.md has them. Parsed only; nothing here is verified."""

from __future__ import annotations

import hashlib
from enum import IntEnum

from enclave_cc.errors import PeerError
from enclave_cc.record import record
from enclave_cc.wire.sgx.report import REPORT_SIZE, TARGET_INFO_SIZE, Report, TargetInfo

MAGIC = b"ECHO"
VERSION = 1
NONCE_SIZE = 32
SESSION_SIZE = 16
SHARE_SIZE = 32
CONFIRMATION_SIZE = 16
MAX_RELEASE_SIZE = 2 << 20  # bytes; well inside a ttrpc message
_HEADER_SIZE = 8
_CONTAINER_ID_LIMIT = 256  # characters


class Type(IntEnum):
    HELLO = 1
    OFFER = 2
    PROOF = 3
    RELEASE = 4


def hash_container_id(container_id: str) -> bytes:
    """The 32 bytes that stand for a container id. Raises `PeerError("malformed")` for an unfit id."""
    if not 0 < len(container_id) <= _CONTAINER_ID_LIMIT or not container_id.isprintable():
        raise PeerError("malformed", f"a container id has 1 to {_CONTAINER_ID_LIMIT} printable characters")
    return hashlib.sha256(container_id.encode()).digest()


def _header(kind: Type) -> bytes:
    return MAGIC + bytes((VERSION, kind, 0, 0))


def _open(data: bytes, kind: Type, size: int | None) -> None:
    name = kind.name.lower()
    if data[:4] != MAGIC or len(data) < _HEADER_SIZE:
        raise PeerError("malformed", "not a handover message")
    if data[4] != VERSION:
        raise PeerError("malformed", f"a handover message of version {data[4]}; this is version {VERSION}")
    if data[5] != kind or data[6:8] != b"\0\0":
        raise PeerError("malformed", f"the handover message is not a well-formed {name}")
    if size is not None and len(data) != size:
        raise PeerError("malformed", f"a handover {name} has {size} bytes, not {len(data)}")


def _check(name: str, value: bytes, size: int) -> None:
    if len(value) != size:
        raise PeerError("malformed", f"a handover {name} has {size} bytes, not {len(value)}")


@record(kw_only=True)
class Hello:
    """App → agent. `container`: SHA-256 of the container id; `nonce`: 32 random bytes."""

    container: bytes
    nonce: bytes
    target: TargetInfo

    SIZE = _HEADER_SIZE + 32 + NONCE_SIZE + TARGET_INFO_SIZE

    def __post_init__(self) -> None:
        _check("container hash", self.container, 32)
        _check("nonce", self.nonce, NONCE_SIZE)

    def encode(self) -> bytes:
        return _header(Type.HELLO) + self.container + self.nonce + self.target.encode()

    @classmethod
    def parse(cls, data: bytes) -> Hello:
        """Raises `PeerError("malformed")`."""
        _open(data, Type.HELLO, cls.SIZE)
        return cls(container=data[8:40], nonce=data[40:72], target=TargetInfo.parse(data[72:]))


@record(kw_only=True)
class Offer:
    """Agent → app. `share`: X25519 public, 32 bytes; the REPORT is for the app."""

    session: bytes
    share: bytes
    report: Report

    SIZE = _HEADER_SIZE + SESSION_SIZE + SHARE_SIZE + REPORT_SIZE

    def __post_init__(self) -> None:
        _check("session id", self.session, SESSION_SIZE)
        _check("share", self.share, SHARE_SIZE)

    @staticmethod
    def encode_opening(session: bytes, share: bytes) -> bytes:
        """The part before the REPORT, which the REPORT covers."""
        return _header(Type.OFFER) + session + share

    def encode(self) -> bytes:
        return self.encode_opening(self.session, self.share) + self.report.encode()

    @classmethod
    def parse(cls, data: bytes) -> Offer:
        """Raises `PeerError("malformed")`."""
        _open(data, Type.OFFER, cls.SIZE)
        return cls(session=data[8:24], share=data[24:56], report=Report.parse(data[56:]))


@record(kw_only=True)
class Proof:
    """App → agent. The REPORT is for the agent; `confirmation` is 16 bytes."""

    session: bytes
    share: bytes
    nonce: bytes
    report: Report
    confirmation: bytes

    SIZE = _HEADER_SIZE + SESSION_SIZE + SHARE_SIZE + NONCE_SIZE + REPORT_SIZE + CONFIRMATION_SIZE

    def __post_init__(self) -> None:
        _check("session id", self.session, SESSION_SIZE)
        _check("share", self.share, SHARE_SIZE)
        _check("nonce", self.nonce, NONCE_SIZE)
        _check("confirmation", self.confirmation, CONFIRMATION_SIZE)

    @staticmethod
    def encode_opening(session: bytes, share: bytes, nonce: bytes) -> bytes:
        """The part before the REPORT, which the REPORT covers."""
        return _header(Type.PROOF) + session + share + nonce

    def encode_reported(self) -> bytes:
        """The part before the confirmation, which the keys cover."""
        return self.encode_opening(self.session, self.share, self.nonce) + self.report.encode()

    def encode(self) -> bytes:
        return self.encode_reported() + self.confirmation

    @classmethod
    def parse(cls, data: bytes) -> Proof:
        """Raises `PeerError("malformed")`."""
        _open(data, Type.PROOF, cls.SIZE)
        return cls(
            session=data[8:24],
            share=data[24:56],
            nonce=data[56:88],
            report=Report.parse(data[88:520]),
            confirmation=data[520:],
        )


@record(kw_only=True)
class SealedRelease:
    """Agent → app. `ciphertext` ends with its tag."""

    session: bytes
    ciphertext: bytes

    def __post_init__(self) -> None:
        _check("session id", self.session, SESSION_SIZE)

    @staticmethod
    def encode_opening(session: bytes) -> bytes:
        """The part before the ciphertext: its associated data."""
        return _header(Type.RELEASE) + session

    def encode(self) -> bytes:
        return self.encode_opening(self.session) + self.ciphertext

    @classmethod
    def parse(cls, data: bytes) -> SealedRelease:
        """Raises `PeerError("malformed")`."""
        _open(data, Type.RELEASE, None)
        if not _HEADER_SIZE + SESSION_SIZE + CONFIRMATION_SIZE <= len(data) <= MAX_RELEASE_SIZE:
            raise PeerError("malformed", f"a handover release of {len(data)} bytes")
        return cls(session=data[8:24], ciphertext=data[24:])
