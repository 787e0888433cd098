"""The simulated quoting enclave, with a stand-in for the PCE: a local REPORT in, a DCAP quote out.

As the real one it signs nothing before the REPORT's MAC, made for it, has been checked.
"""

from __future__ import annotations

import hashlib
from hmac import compare_digest
from typing import TYPE_CHECKING

from enclave_cc.crypto.ecdsa import SigningKey
from enclave_cc.crypto.kdf import aes_cmac
from enclave_cc.errors import PeerError
from enclave_cc.simulator.cpu import SimulatedEnclave, SoftwareCpu
from enclave_cc.wire.sgx.certification import PCK_CERTIFICATE_CHAIN, CertificationData
from enclave_cc.wire.sgx.measurement import PAGE_SIZE, MeasurementLog, PageFlag
from enclave_cc.wire.sgx.quote import Quote, QuoteHeader
from enclave_cc.wire.sgx.report import AttributeFlag, Attributes, KeyName, KeyRequest, Report, ReportBody, TargetInfo

if TYPE_CHECKING:
    from enclave_cc.simulator.platform import Platform

_NAME = b"enclave-cc simulated quoting enclave, NOT Intel"
_AUTHENTICATION_DATA = bytes(range(32))


def qe_body(platform: Platform) -> ReportBody:
    """The quoting enclave's own identity, which the QE identity in the collateral describes."""
    log = MeasurementLog(size=2 * PAGE_SIZE, ssa_frame_size=1)
    log.add_page(0, PageFlag.REG | PageFlag.R)
    log.extend_page(0, _NAME.ljust(PAGE_SIZE, b"\0"))
    return ReportBody(
        cpu_svn=platform.cpu_svn,
        attributes=Attributes(AttributeFlag.INIT | AttributeFlag.MODE64BIT | AttributeFlag.PROVISION_KEY, 0x3),
        mr_enclave=log.mr_enclave(),
        mr_signer=hashlib.sha256(_NAME).digest(),
        isv_prod_id=1,
        isv_svn=platform.qe_isv_svn,
    )


class QuotingEnclave:
    """One quoting enclave with an attestation key of its own, certified by the PCK. Thread-safe."""

    def __init__(self, platform: Platform) -> None:
        self._enclave = SimulatedEnclave(SoftwareCpu(platform), qe_body(platform))
        self._header = QuoteHeader(qe_svn=platform.qe_isv_svn, pce_svn=platform.pce_svn, user_data=platform.qe_id + bytes(4))
        self._key = SigningKey.generate()
        self._certification = CertificationData(PCK_CERTIFICATE_CHAIN, platform.pck_chain_pem() + b"\0")
        # The PCE's part: the PCK signs the quoting enclave's report, which binds the attestation key.
        binding = hashlib.sha256(self._key.public + _AUTHENTICATION_DATA).digest() + bytes(32)
        self._report = self._enclave.ereport(self.target_info(), binding).body
        self._report_signature = SigningKey.from_pem(platform.read("pck.pem")).sign(self._report.encode())

    def target_info(self) -> TargetInfo:
        """Make the REPORT for this target."""
        return self._enclave.target_info()

    def quote(self, report: Report) -> bytes:
        """A quote over the report's body. Raises `PeerError("report-refused")` unless its MAC is for this enclave."""
        key = self._enclave.egetkey(KeyRequest(key_name=KeyName.REPORT, key_id=report.key_id))
        if not compare_digest(aes_cmac(key, report.body.encode()), report.mac):
            raise PeerError("report-refused", "the REPORT is not of this platform, or not made for the quoting enclave")
        signed = self._header.encode() + report.body.encode()
        return Quote(
            header=self._header,
            body=report.body,
            signature=self._key.sign(signed),
            attestation_key=self._key.public,
            qe_report=self._report,
            qe_report_signature=self._report_signature,
            authentication_data=_AUTHENTICATION_DATA,
            certification=self._certification,
        ).encode()
