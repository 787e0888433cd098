"""The SGX extension of a PCK certificate (1.2.840.113741.1.13.1), as DER.

Intel SGX PCK Certificate and CRL Profile Specification, 1.3.5.
"""

from __future__ import annotations

from enclave_cc.record import record

OID = "1.2.840.113741.1.13.1"
_BASE = bytes.fromhex("2a864886f84d010d01")  # the OID's own content bytes
_SGX_TYPE_SCALABLE = 1

_BOOLEAN, _INTEGER, _OCTETS, _OID, _ENUMERATED, _SEQUENCE = 0x01, 0x02, 0x04, 0x06, 0x0A, 0x30


@record(kw_only=True)
class PckExtension:
    """What the PCK certificate says of the platform; a scalable (multi-package) one, as the Platform CA certifies."""

    ppid: bytes  # 16
    cpu_svn: bytes  # 16; its bytes are the 16 TCB components
    pce_svn: int
    pce_id: bytes  # 2
    fmspc: bytes  # 6
    platform_instance_id: bytes  # 16

    def encode(self) -> bytes:
        """DER of the extension's value."""
        tcb = [_member((2, number), _integer(svn)) for number, svn in enumerate(self.cpu_svn, 1)]
        tcb += [_member((2, 17), _integer(self.pce_svn)), _member((2, 18), _der(_OCTETS, self.cpu_svn))]
        configuration = [_member((7, number), _der(_BOOLEAN, b"\0")) for number in (1, 2, 3)]  # not dynamic, no cached keys, no SMT
        return _der(
            _SEQUENCE,
            _member((1,), _der(_OCTETS, self.ppid)),
            _member((2,), _der(_SEQUENCE, *tcb)),
            _member((3,), _der(_OCTETS, self.pce_id)),
            _member((4,), _der(_OCTETS, self.fmspc)),
            _member((5,), _der(_ENUMERATED, bytes([_SGX_TYPE_SCALABLE]))),
            _member((6,), _der(_OCTETS, self.platform_instance_id)),
            _member((7,), _der(_SEQUENCE, *configuration)),
        )


def _member(arcs: tuple[int, ...], value: bytes) -> bytes:
    return _der(_SEQUENCE, _der(_OID, _BASE + bytes(arcs)), value)


def _integer(value: int) -> bytes:
    return _der(_INTEGER, value.to_bytes(value.bit_length() // 8 + 1, "big"))


def _der(tag: int, *parts: bytes) -> bytes:
    content = b"".join(parts)
    size = len(content)
    if size < 0x80:
        return bytes([tag, size]) + content
    length = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes([tag, 0x80 | len(length)]) + length + content
