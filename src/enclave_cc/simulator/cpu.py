"""The software CPU: EINIT, EREPORT and EGETKEY with the checks and dependencies of the real instructions.

Intel SDM volume 3D, chapter 40 (EINIT, EREPORT, EGETKEY). Keys are AES-CMACs under the platform's root key over all
that the instruction makes a key depend on; how the hardware packs that is not observable, so ours is our own.
"""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING

from enclave_cc.crypto.kdf import aes_cmac
from enclave_cc.crypto.secret import Secret
from enclave_cc.errors import PeerError
from enclave_cc.record import record, replace
from enclave_cc.wire.sgx import manifest as enclave_manifest
from enclave_cc.wire.sgx.report import AttributeFlag, Attributes, KeyName, KeyPolicy, KeyRequest, Report, ReportBody, TargetInfo
from enclave_cc.wire.sgx.sigstruct import ENCLAVE_ATTRIBUTES, SigStruct

if TYPE_CHECKING:
    from enclave_cc.simulator.platform import Platform

_NO_ATTRIBUTES = Attributes(0, 0)
_KNOWN_POLICY = sum(KeyPolicy)
_ALWAYS_IN_SEAL_KEYS = AttributeFlag.INIT | AttributeFlag.DEBUG
# name, policy, ISVPRODID, ISVSVN, CONFIGSVN, CPUSVN, flags, xfrm, their masks, misc, its mask, CET, its mask,
# MRENCLAVE, MRSIGNER, CONFIGID, family id, ext prod id, KEYID, owner epoch, seal fuses
_DEPENDENCIES = struct.Struct("<HHHHH16sQQQQIIBB32s32s64s16s16s32s16s16s")


class SoftwareCpu:
    """A CPU of one platform. Thread-safe: it only reads."""

    __slots__ = ("_report_key_id", "platform")

    def __init__(self, platform: Platform) -> None:
        self.platform = platform
        self._report_key_id = os.urandom(32)  # CR_REPORT_KEYID: drawn at reset

    def launch(
        self,
        manifest: bytes,
        sigstruct: bytes,
        *,
        config_id: bytes = bytes(64),
        config_svn: int = 0,
        debug: bool = False,
    ) -> SimulatedEnclave:
        """ECREATE to EINIT of the enclave that `manifest` describes.

        Raises `PeerError`: "malformed" for a broken SIGSTRUCT or manifest, "measurement-changed" when EINIT refuses.

        1. the SIGSTRUCT's form and its signature
        2. ENCLAVEHASH is the measurement of what was loaded
        3. ATTRIBUTES and MISCSELECT, where the signer's masks look
        """
        # 1
        signed = SigStruct.parse(sigstruct).verify()
        # 2
        mr_enclave = enclave_manifest.measure(manifest)
        if signed.enclave_hash != mr_enclave:
            raise PeerError(
                "measurement-changed", f"the enclave measures {mr_enclave.hex()}, its SIGSTRUCT is for {signed.enclave_hash.hex()}"
            )
        # 3
        flags = ENCLAVE_ATTRIBUTES.flags | (AttributeFlag.DEBUG if debug else 0)
        attributes, mask, wanted = Attributes(flags, ENCLAVE_ATTRIBUTES.xfrm), signed.attribute_mask, signed.attributes
        if (attributes.flags ^ wanted.flags) & mask.flags or (attributes.xfrm ^ wanted.xfrm) & mask.xfrm:
            raise PeerError("measurement-changed", "the SIGSTRUCT does not allow these attributes (debug?)")
        if signed.misc_select & signed.misc_mask or signed.cet_attributes & signed.cet_attributes_mask:
            raise PeerError("measurement-changed", "the SIGSTRUCT asks for MISCSELECT or CET bits that this CPU lacks")
        return SimulatedEnclave(
            self,
            ReportBody(
                cpu_svn=self.platform.cpu_svn,
                isv_ext_prod_id=signed.isv_ext_prod_id,
                attributes=Attributes(attributes.flags | AttributeFlag.INIT, attributes.xfrm),
                mr_enclave=mr_enclave,
                mr_signer=signed.mr_signer,
                config_id=config_id,
                isv_prod_id=signed.isv_prod_id,
                isv_svn=signed.isv_svn,
                config_svn=config_svn,
                isv_family_id=signed.isv_family_id,
            ),
        )

    def report_key(self, target: TargetInfo, key_id: bytes) -> Secret:
        """What EGETKEY(REPORT) gives to the enclave that `target` describes, and EREPORT uses for it."""
        return self._derive(
            _Dependencies(
                name=KeyName.REPORT,
                cpu_svn=self.platform.cpu_svn,
                attributes=target.attributes,
                misc_select=target.misc_select,
                cet_attributes=target.cet_attributes,
                mr_enclave=target.mr_enclave,
                config_id=target.config_id,
                config_svn=target.config_svn,
                key_id=key_id,
            )
        )

    def make_report(self, body: ReportBody, target: TargetInfo) -> Report:
        mac = aes_cmac(self.report_key(target, self._report_key_id), body.encode())
        return Report(body=body, key_id=self._report_key_id, mac=mac)

    def seal_key(self, body: ReportBody, request: KeyRequest) -> Secret:
        """EGETKEY(SEAL). Raises `PeerError("malformed")`.

        1. only known policy bits
        2. no SVN above the enclave's or the platform's: older keys may be had, future ones not
        """
        # 1
        if request.key_policy & ~_KNOWN_POLICY:
            raise PeerError("malformed", "EGETKEY: INVALID_ATTRIBUTE, unknown key policy")
        policy = KeyPolicy(request.key_policy)
        # 2
        if any(asked > own for asked, own in zip(request.cpu_svn, self.platform.cpu_svn, strict=True)):
            raise PeerError("malformed", "EGETKEY: INVALID_CPUSVN")
        if request.isv_svn > body.isv_svn or request.config_svn > body.config_svn:
            raise PeerError("malformed", "EGETKEY: INVALID_ISVSVN")
        mask = Attributes(request.attribute_mask.flags | _ALWAYS_IN_SEAL_KEYS, request.attribute_mask.xfrm)
        return self._derive(
            _Dependencies(
                name=KeyName.SEAL,
                policy=policy,
                isv_prod_id=0 if policy & KeyPolicy.NOISVPRODID else body.isv_prod_id,
                isv_svn=request.isv_svn,
                config_svn=request.config_svn if policy & KeyPolicy.CONFIGID else 0,
                cpu_svn=request.cpu_svn,
                attributes=Attributes(body.attributes.flags & mask.flags, body.attributes.xfrm & mask.xfrm),
                attribute_mask=mask,
                misc_select=body.misc_select & request.misc_mask,
                misc_mask=request.misc_mask,
                cet_attributes=body.cet_attributes & request.cet_attributes_mask,
                cet_attributes_mask=request.cet_attributes_mask,
                mr_enclave=body.mr_enclave if policy & KeyPolicy.MRENCLAVE else bytes(32),
                mr_signer=body.mr_signer if policy & KeyPolicy.MRSIGNER else bytes(32),
                config_id=body.config_id if policy & KeyPolicy.CONFIGID else bytes(64),
                isv_family_id=body.isv_family_id if policy & KeyPolicy.ISVFAMILYID else bytes(16),
                isv_ext_prod_id=body.isv_ext_prod_id if policy & KeyPolicy.ISVEXTPRODID else bytes(16),
                key_id=request.key_id,
                seal_fuses=self.platform.seal_fuses,
            )
        )

    def _derive(self, wanted: _Dependencies) -> Secret:
        return Secret(aes_cmac(self.platform.root_key, wanted.pack(self.platform.owner_epoch)))


@record
class SimulatedEnclave:
    """One launched enclave: `identity` is what EREPORT says of it, apart from report data."""

    cpu: SoftwareCpu
    identity: ReportBody

    def target_info(self) -> TargetInfo:
        return TargetInfo.of(self.identity)

    def ereport(self, target: TargetInfo, report_data: bytes) -> Report:
        """EREPORT: 64 bytes of report data, MAC under the target's report key."""
        return self.cpu.make_report(replace(self.identity, report_data=report_data), target)

    def egetkey(self, request: KeyRequest) -> Secret:
        """EGETKEY: 16 bytes. Raises `PeerError("malformed")` with the instruction's error name."""
        match request.key_name:
            case KeyName.REPORT:
                return self.cpu.report_key(self.target_info(), request.key_id)
            case KeyName.SEAL:
                return self.cpu.seal_key(self.identity, request)
            case _:
                # The others need the PROVISION_KEY or EINITTOKEN_KEY attribute, which no container enclave has.
                raise PeerError("malformed", "EGETKEY: INVALID_ATTRIBUTE or INVALID_KEYNAME")


@record(kw_only=True)
class _Dependencies:
    """SDM table 40-64: what a derived key depends on. Zero: not on this."""

    name: int
    policy: int = 0
    isv_prod_id: int = 0
    isv_svn: int = 0
    config_svn: int = 0
    cpu_svn: bytes
    attributes: Attributes
    attribute_mask: Attributes = _NO_ATTRIBUTES
    misc_select: int = 0
    misc_mask: int = 0
    cet_attributes: int = 0
    cet_attributes_mask: int = 0
    mr_enclave: bytes = bytes(32)
    mr_signer: bytes = bytes(32)
    config_id: bytes = bytes(64)
    isv_family_id: bytes = bytes(16)
    isv_ext_prod_id: bytes = bytes(16)
    key_id: bytes
    seal_fuses: bytes = bytes(16)

    def pack(self, owner_epoch: bytes) -> bytes:
        return _DEPENDENCIES.pack(
            self.name,
            self.policy,
            self.isv_prod_id,
            self.isv_svn,
            self.config_svn,
            self.cpu_svn,
            self.attributes.flags,
            self.attributes.xfrm,
            self.attribute_mask.flags,
            self.attribute_mask.xfrm,
            self.misc_select,
            self.misc_mask,
            self.cet_attributes,
            self.cet_attributes_mask,
            self.mr_enclave,
            self.mr_signer,
            self.config_id,
            self.isv_family_id,
            self.isv_ext_prod_id,
            self.key_id,
            owner_epoch,
            self.seal_fuses,
        )
