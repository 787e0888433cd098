"""SIGSTRUCT: the signer's statement about an enclave, 1808 bytes.

Intel SDM volume 3D, 38.14. The signature covers bytes 0-127 and 900-1027. q1 and q2 help microcode to check an
exponent-3 signature without division; a wrong one is refused as the CPU refuses it.
"""

from __future__ import annotations

import hashlib
import struct

from enclave_cc.crypto import rsa3072
from enclave_cc.errors import PeerError
from enclave_cc.record import record, replace
from enclave_cc.wire.sgx.report import AttributeFlag, Attributes

SIGSTRUCT_SIZE = 1808
_HEADER = bytes.fromhex("06000000e10000000000010000000000")
_HEADER2 = bytes.fromhex("01010000600000006000000001000000")
# header, vendor, date, header2, swdefined, reserved | modulus, exponent, signature |
# miscselect, miscmask, cet, cet mask, reserved, family id, attributes, mask, hash, reserved, ext prod id, prod id, svn |
# reserved, q1, q2
_LAYOUT = struct.Struct("<16sII16sI84s384sI384sIIBB2s16sQQQQ32s16s16sHH12s384s384s")


@record(kw_only=True)
class SigStruct:
    """A parsed SIGSTRUCT; `verify` says whether its signature holds."""

    vendor: int = 0
    date: int
    sw_defined: int = 0
    modulus: int = 0
    signature: int = 0
    misc_select: int = 0
    misc_mask: int = 0xFFFFFFFF
    cet_attributes: int = 0
    cet_attributes_mask: int = 0xFF
    isv_family_id: bytes = bytes(16)
    attributes: Attributes
    attribute_mask: Attributes
    enclave_hash: bytes
    isv_ext_prod_id: bytes = bytes(16)
    isv_prod_id: int
    isv_svn: int

    def __post_init__(self) -> None:
        for name, size in (("isv_family_id", 16), ("enclave_hash", 32), ("isv_ext_prod_id", 16)):
            if len(getattr(self, name)) != size:
                raise PeerError("malformed", f"the SIGSTRUCT's {name} does not have {size} bytes")
        for name, bits in (
            ("vendor", 32),
            ("date", 32),
            ("sw_defined", 32),
            ("modulus", 3072),
            ("signature", 3072),
            ("misc_select", 32),
            ("misc_mask", 32),
            ("cet_attributes", 8),
            ("cet_attributes_mask", 8),
            ("isv_prod_id", 16),
            ("isv_svn", 16),
        ):
            if not 0 <= getattr(self, name) < 1 << bits:
                raise PeerError("malformed", f"the SIGSTRUCT's {name} does not fit {bits} bits")

    @property
    def mr_signer(self) -> bytes:
        """MRSIGNER: SHA-256 of the modulus as 384 little-endian bytes."""
        return mr_signer(self.modulus)

    @classmethod
    def parse(cls, data: bytes) -> SigStruct:
        """Raises `PeerError("malformed")` unless `data` is one SIGSTRUCT with fitting headers, exponent, q1 and q2."""
        if len(data) != SIGSTRUCT_SIZE:
            raise PeerError("malformed", f"a SIGSTRUCT has {SIGSTRUCT_SIZE} bytes, not {len(data)}")
        (
            header,
            vendor,
            date,
            header2,
            sw_defined,
            reserved1,
            modulus,
            exponent,
            signature,
            misc_select,
            misc_mask,
            cet_attributes,
            cet_attributes_mask,
            reserved2,
            isv_family_id,
            flags,
            xfrm,
            flags_mask,
            xfrm_mask,
            enclave_hash,
            reserved3,
            isv_ext_prod_id,
            isv_prod_id,
            isv_svn,
            reserved4,
            q1,
            q2,
        ) = _LAYOUT.unpack(data)
        if (header, header2, exponent) != (_HEADER, _HEADER2, rsa3072.EXPONENT):
            raise PeerError("malformed", "the SIGSTRUCT's headers or exponent are not those of version 1")
        if any(map(any, (reserved1, reserved2, reserved3, reserved4))):
            raise PeerError("malformed", "a reserved byte of the SIGSTRUCT is not zero")
        parsed = cls(
            vendor=vendor,
            date=date,
            sw_defined=sw_defined,
            modulus=int.from_bytes(modulus, "little"),
            signature=int.from_bytes(signature, "little"),
            misc_select=misc_select,
            misc_mask=misc_mask,
            cet_attributes=cet_attributes,
            cet_attributes_mask=cet_attributes_mask,
            isv_family_id=isv_family_id,
            attributes=Attributes(flags, xfrm),
            attribute_mask=Attributes(flags_mask, xfrm_mask),
            enclave_hash=enclave_hash,
            isv_ext_prod_id=isv_ext_prod_id,
            isv_prod_id=isv_prod_id,
            isv_svn=isv_svn,
        )
        if parsed.signature >= parsed.modulus:
            raise PeerError("malformed", "the SIGSTRUCT's signature is not below its modulus")
        if (int.from_bytes(q1, "little"), int.from_bytes(q2, "little")) != parsed._quotients():
            raise PeerError("malformed", "the SIGSTRUCT's q1 or q2 does not fit its signature")
        return parsed

    def encode(self) -> bytes:
        """1808 bytes."""
        q1, q2 = self._quotients()
        return _LAYOUT.pack(
            _HEADER,
            self.vendor,
            self.date,
            _HEADER2,
            self.sw_defined,
            b"",
            self.modulus.to_bytes(384, "little"),
            rsa3072.EXPONENT,
            self.signature.to_bytes(384, "little"),
            self.misc_select,
            self.misc_mask,
            self.cet_attributes,
            self.cet_attributes_mask,
            b"",
            self.isv_family_id,
            self.attributes.flags,
            self.attributes.xfrm,
            self.attribute_mask.flags,
            self.attribute_mask.xfrm,
            self.enclave_hash,
            b"",
            self.isv_ext_prod_id,
            self.isv_prod_id,
            self.isv_svn,
            b"",
            q1.to_bytes(384, "little"),
            q2.to_bytes(384, "little"),
        )

    def signed_bytes(self) -> bytes:
        """The 256 bytes under the signature."""
        data = self.encode()
        return data[:128] + data[900:1028]

    def verify(self) -> SigStruct:
        """Itself. Raises `PeerError` ("malformed", "measurement-changed") unless the signature is by `modulus`."""
        rsa3072.verify(self.modulus, self.signature, self.signed_bytes())
        return self

    def _quotients(self) -> tuple[int, int]:
        if self.modulus == 0:
            return 0, 0  # not signed yet
        square = self.signature * self.signature
        q1, remainder = divmod(square, self.modulus)
        return q1, self.signature * remainder // self.modulus


def mr_signer(modulus: int) -> bytes:
    """MRSIGNER (32 bytes) of a signer's RSA-3072 modulus."""
    return hashlib.sha256(modulus.to_bytes(rsa3072.KEY_SIZE, "little")).digest()


# What our enclaves run with: 64-bit, key separation (CONFIGID), x87 and SSE state. INIT is set by EINIT.
ENCLAVE_ATTRIBUTES = Attributes(AttributeFlag.MODE64BIT | AttributeFlag.KSS, 0x3)
_ALL_ATTRIBUTES = Attributes((1 << 64) - 1, (1 << 64) - 1)
_ALL_BUT_DEBUG = Attributes(_ALL_ATTRIBUTES.flags & ~AttributeFlag.DEBUG, _ALL_ATTRIBUTES.xfrm)


def sign(
    key: rsa3072.SigningKey,
    *,
    mr_enclave: bytes,
    isv_prod_id: int,
    isv_svn: int,
    date: int,
    allow_debug: bool = False,
    attributes: Attributes = ENCLAVE_ATTRIBUTES,
) -> SigStruct:
    """A signed SIGSTRUCT; the same inputs give the same bytes.

    `date` is read as digits, YYYYMMDD. With `allow_debug` the platform may launch the enclave as a debug enclave
    too (SIGSTRUCT leaves the DEBUG bit open, as Intel's SDK does); a verifier still refuses it then.
    """
    unsigned = SigStruct(
        date=int(str(date), 16),  # BCD
        attributes=attributes,
        attribute_mask=_ALL_BUT_DEBUG if allow_debug else _ALL_ATTRIBUTES,
        enclave_hash=mr_enclave,
        isv_prod_id=isv_prod_id,
        isv_svn=isv_svn,
    )
    # The modulus lies outside the signed bytes, and so does everything that depends on the signature.
    return replace(unsigned, modulus=key.modulus, signature=key.sign(unsigned.signed_bytes()))
