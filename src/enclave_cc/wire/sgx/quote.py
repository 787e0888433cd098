"""SGX DCAP quote, version 3 with an ECDSA-P256 attestation key. Parsed only: `owner.verifier` judges it.

Intel SGX ECDSA QuoteLibReference, A.4:

    off  size  header                        off  size  signature data, at 436
      0     2  version, 3                      0    64  signature r‖s over bytes 0-431
      2     2  attestation key type, 2        64    64  attestation public key x‖y
      4     4  reserved (TEE type), 0        128   384  report body of the quoting enclave
      8     2  QE SVN                        512    64  signature r‖s over it, by the PCK
     10     2  PCE SVN                       576     2  size of the authentication data
     12    16  QE vendor id                  578     n  authentication data
     28    20  user data                   578+n     …  certification data
     48   384  report body of the enclave
    432     4  size of the signature data
"""

from __future__ import annotations

import struct

from enclave_cc.errors import PeerError
from enclave_cc.record import record
from enclave_cc.wire.sgx.certification import CertificationData
from enclave_cc.wire.sgx.report import REPORT_BODY_SIZE, ReportBody

VERSION = 3
ATTESTATION_KEY_ECDSA_P256 = 2
INTEL_QE_VENDOR_ID = bytes.fromhex("939a7233f79c4ca9940a0db3957f0607")
HEADER_SIZE = 48
SIGNED_SIZE = HEADER_SIZE + REPORT_BODY_SIZE
QUOTE_LIMIT = 128 << 10

_HEADER = struct.Struct("<HHIHH16s20s")
_FIXED_SIGNATURE_SIZE = 64 + 64 + REPORT_BODY_SIZE + 64 + 2


@record(kw_only=True)
class QuoteHeader:
    """The first 48 bytes."""

    qe_svn: int
    pce_svn: int
    qe_vendor_id: bytes = INTEL_QE_VENDOR_ID
    user_data: bytes = bytes(20)

    def __post_init__(self) -> None:
        if not 0 <= self.qe_svn < 1 << 16 or not 0 <= self.pce_svn < 1 << 16:
            raise PeerError("malformed", "an SVN in the quote's header does not fit 16 bits")
        if len(self.qe_vendor_id) != 16 or len(self.user_data) != 20:
            raise PeerError("malformed", "the quote header's vendor id or user data has the wrong size")

    @classmethod
    def parse(cls, data: bytes) -> QuoteHeader:
        """Raises `PeerError("malformed")` unless `data` is the 48-byte header of an SGX ECDSA-P256 quote v3."""
        if len(data) != HEADER_SIZE:
            raise PeerError("malformed", "the quote's header is cut off")
        version, key_type, reserved, qe_svn, pce_svn, vendor, user_data = _HEADER.unpack(data)
        if version != VERSION:
            raise PeerError("malformed", f"the quote has version {version}, not {VERSION}")
        if key_type != ATTESTATION_KEY_ECDSA_P256:
            raise PeerError("malformed", f"the quote's attestation key has type {key_type}, not ECDSA-P256")
        if reserved:
            raise PeerError("malformed", "the quote is not of an SGX enclave")
        return cls(qe_svn=qe_svn, pce_svn=pce_svn, qe_vendor_id=vendor, user_data=user_data)

    def encode(self) -> bytes:
        """48 bytes."""
        return _HEADER.pack(VERSION, ATTESTATION_KEY_ECDSA_P256, 0, self.qe_svn, self.pce_svn, self.qe_vendor_id, self.user_data)


@record(kw_only=True)
class Quote:
    """A whole quote; sizes are checked, nothing else is."""

    header: QuoteHeader
    body: ReportBody
    signature: bytes
    attestation_key: bytes
    qe_report: ReportBody
    qe_report_signature: bytes
    authentication_data: bytes
    certification: CertificationData

    def __post_init__(self) -> None:
        for name in ("signature", "attestation_key", "qe_report_signature"):
            if len(getattr(self, name)) != 64:
                raise PeerError("malformed", f"the quote's {name} does not have 64 bytes")
        if len(self.authentication_data) >= 1 << 16:
            raise PeerError("malformed", "the quote's authentication data is too long")

    @classmethod
    def parse(cls, data: bytes) -> Quote:
        """Raises `PeerError("malformed")` unless `data` is one quote, without a byte more."""
        if len(data) > QUOTE_LIMIT:
            raise PeerError("malformed", f"a quote has at most {QUOTE_LIMIT} bytes")
        if len(data) < SIGNED_SIZE + 4 + _FIXED_SIGNATURE_SIZE:
            raise PeerError("malformed", "the quote is cut off")
        if int.from_bytes(data[SIGNED_SIZE : SIGNED_SIZE + 4], "little") != len(data) - SIGNED_SIZE - 4:
            raise PeerError("malformed", "the size of the quote's signature data does not fit")
        signature = data[SIGNED_SIZE + 4 :]
        authentication_end = _FIXED_SIGNATURE_SIZE + int.from_bytes(signature[576:578], "little")
        if authentication_end > len(signature):
            raise PeerError("malformed", "the quote's authentication data is cut off")
        return cls(
            header=QuoteHeader.parse(data[:HEADER_SIZE]),
            body=ReportBody.parse(data[HEADER_SIZE:SIGNED_SIZE]),
            signature=signature[:64],
            attestation_key=signature[64:128],
            qe_report=ReportBody.parse(signature[128:512]),
            qe_report_signature=signature[512:576],
            authentication_data=signature[_FIXED_SIGNATURE_SIZE:authentication_end],
            certification=CertificationData.parse(signature[authentication_end:]),
        )

    def signed_bytes(self) -> bytes:
        """The 432 bytes under the attestation key's signature."""
        return self.header.encode() + self.body.encode()

    def encode(self) -> bytes:
        signature = b"".join(
            (
                self.signature,
                self.attestation_key,
                self.qe_report.encode(),
                self.qe_report_signature,
                len(self.authentication_data).to_bytes(2, "little"),
                self.authentication_data,
                self.certification.encode(),
            )
        )
        return self.signed_bytes() + len(signature).to_bytes(4, "little") + signature
