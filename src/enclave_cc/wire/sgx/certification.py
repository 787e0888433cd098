"""QE certification data: how a quote says which PCK certificate stands behind it.

Intel SGX ECDSA QuoteLibReference, A.4 (types 1-7). Only type 5, the PEM chain of the PCK certificate, verifies
without asking anybody; the other types are parsed and left to the caller.
"""

from __future__ import annotations

import base64
import binascii
import re

from enclave_cc.errors import PeerError
from enclave_cc.record import record

PCK_CERTIFICATE_CHAIN = 5
CERTIFICATION_LIMIT = 64 << 10
CHAIN_SIZE = 3  # leaf, intermediate, root

_PEM = re.compile(rb"-----BEGIN CERTIFICATE-----\n([A-Za-z0-9+/=\n]{1,16384}?)\n-----END CERTIFICATE-----\n?")


@record
class CertificationData:
    """Type and raw data, as in the quote."""

    type: int
    data: bytes

    def __post_init__(self) -> None:
        if not 0 <= self.type < 1 << 16 or len(self.data) > CERTIFICATION_LIMIT:
            raise PeerError("malformed", "the certification data's type or size is impossible")

    @classmethod
    def parse(cls, data: bytes) -> CertificationData:
        """Raises `PeerError("malformed")` unless `data` is a u16 type, a u32 size and that many bytes."""
        if len(data) < 6:
            raise PeerError("malformed", "the certification data is cut off")
        if int.from_bytes(data[2:6], "little") != len(data) - 6:
            raise PeerError("malformed", "the certification data's size does not fit")
        return cls(int.from_bytes(data[:2], "little"), data[6:])

    def encode(self) -> bytes:
        return self.type.to_bytes(2, "little") + len(self.data).to_bytes(4, "little") + self.data

    def certificates(self) -> tuple[bytes, bytes, bytes]:
        """DER of the PCK leaf, its CA and the root. Raises `PeerError("malformed")` for anything else.

        Only one spelling of a chain is accepted (64 columns, LF, padding bits zero, at most one NUL at the end, as
        Intel's service and library write it), so that no byte of it can change unnoticed.
        """
        if self.type != PCK_CERTIFICATE_CHAIN:
            raise PeerError("malformed", f"certification data of type {self.type} carries no certificate chain")
        text = self.data.removesuffix(b"\0")
        certificates = parse_pem_certificates(text)
        if len(certificates) != CHAIN_SIZE:
            raise PeerError("malformed", f"the PCK chain has {len(certificates)} certificates, not {CHAIN_SIZE}")
        canonical = b"".join(map(encode_pem_certificate, certificates))
        if text not in (canonical, canonical[:-1]):
            raise PeerError("malformed", "the PCK chain is not written canonically")
        return certificates[0], certificates[1], certificates[2]


def parse_pem_certificates(text: bytes) -> list[bytes]:
    """DER of each certificate in a PEM text that holds nothing else. Raises `PeerError("malformed")`."""
    certificates, position = [], 0
    while position < len(text):
        found = _PEM.match(text, position)
        if found is None:
            raise PeerError("malformed", "a certificate chain is not PEM")
        try:
            certificates.append(base64.b64decode(found[1].replace(b"\n", b""), validate=True))
        except binascii.Error as error:
            raise PeerError("malformed", "a certificate chain is not PEM") from error
        position = found.end()
    return certificates


def encode_pem_certificate(der: bytes) -> bytes:
    """PEM (RFC 7468) of one certificate, closed by a newline."""
    text = base64.b64encode(der)
    lines = [text[start : start + 64] for start in range(0, len(text), 64)]
    return b"\n".join([b"-----BEGIN CERTIFICATE-----", *lines, b"-----END CERTIFICATE-----", b""])
