"""Which enclave one enclave is willing to talk to: a policy over a report body.

JSON form (in bundles): {"mr_enclave": hex?, "mr_signer": hex?, "isv_prod_id": int?, "min_isv_svn": int?,
"allow_debug": bool?}; an unknown member is an error, since it might have been meant as a restriction.
"""

from __future__ import annotations

import json
from hmac import compare_digest

from enclave_cc.errors import PeerError
from enclave_cc.record import record
from enclave_cc.wire.sgx.report import AttributeFlag, ReportBody

IDENTITY_LIMIT = 4096
_MEMBERS = {"mr_enclave", "mr_signer", "isv_prod_id", "min_isv_svn", "allow_debug"}


@record(kw_only=True)
class EnclaveIdentity:
    """Exact MRENCLAVE, or MRSIGNER with ISVPRODID; either may be narrowed by the other members."""

    mr_enclave: bytes | None = None
    mr_signer: bytes | None = None
    isv_prod_id: int | None = None
    min_isv_svn: int | None = None
    allow_debug: bool = False

    def __post_init__(self) -> None:
        for name in ("mr_enclave", "mr_signer"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, bytes) or len(value) != 32):
                raise PeerError("malformed", f"the identity's {name} does not have 32 bytes")
        for name in ("isv_prod_id", "min_isv_svn"):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or not 0 <= value < 1 << 16):
                raise PeerError("malformed", f"the identity's {name} does not fit 16 bits")
        if type(self.allow_debug) is not bool:
            raise PeerError("malformed", "the identity's allow_debug is not a truth value")
        if self.mr_enclave is None and (self.mr_signer is None or self.isv_prod_id is None):
            raise PeerError("malformed", "an identity names an MRENCLAVE, or an MRSIGNER with an ISVPRODID")

    def check(self, body: ReportBody) -> ReportBody:
        """`body`, which must be authenticated already. Raises `PeerError` ("debug-enclave", "identity-refused").

        1. it is an initialised enclave, and no debug enclave unless allowed
        2. MRENCLAVE, if given
        3. MRSIGNER, if given
        4. ISVPRODID, if given
        5. at least the smallest ISVSVN, if given
        """
        # 1
        if not body.attributes.flags & AttributeFlag.INIT:
            raise PeerError("identity-refused", "the peer is not an initialised enclave")
        if body.attributes.debug and not self.allow_debug:
            raise PeerError("debug-enclave", "the peer is a debug enclave")
        # 2
        if self.mr_enclave is not None and not compare_digest(self.mr_enclave, body.mr_enclave):
            raise PeerError("identity-refused", "the peer's MRENCLAVE is not the expected one")
        # 3
        if self.mr_signer is not None and not compare_digest(self.mr_signer, body.mr_signer):
            raise PeerError("identity-refused", "the peer's MRSIGNER is not the expected one")
        # 4
        if self.isv_prod_id is not None and self.isv_prod_id != body.isv_prod_id:
            raise PeerError("identity-refused", "the peer's ISVPRODID is not the expected one")
        # 5
        if self.min_isv_svn is not None and body.isv_svn < self.min_isv_svn:
            raise PeerError("identity-refused", "the peer's ISVSVN is too low")
        return body

    @classmethod
    def parse(cls, data: bytes) -> EnclaveIdentity:
        """Raises `PeerError("malformed")`."""
        if len(data) > IDENTITY_LIMIT:
            raise PeerError("malformed", f"an identity has at most {IDENTITY_LIMIT} bytes")
        try:
            document = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise PeerError("malformed", "the identity is not JSON") from error
        if not isinstance(document, dict) or not set(document) <= _MEMBERS:
            raise PeerError("malformed", "the identity is not an object of the known members")
        return cls(
            mr_enclave=_parse_hex(document.get("mr_enclave")),
            mr_signer=_parse_hex(document.get("mr_signer")),
            isv_prod_id=document.get("isv_prod_id"),
            min_isv_svn=document.get("min_isv_svn"),
            allow_debug=document.get("allow_debug", False),
        )

    def encode(self) -> bytes:
        """Canonical JSON; members that say nothing are left out."""
        document: dict[str, object] = {}
        if self.mr_enclave is not None:
            document["mr_enclave"] = self.mr_enclave.hex()
        if self.mr_signer is not None:
            document["mr_signer"] = self.mr_signer.hex()
        if self.isv_prod_id is not None:
            document["isv_prod_id"] = self.isv_prod_id
        if self.min_isv_svn is not None:
            document["min_isv_svn"] = self.min_isv_svn
        if self.allow_debug:
            document["allow_debug"] = True
        return json.dumps(document, sort_keys=True, separators=(",", ":")).encode("ascii")


def _parse_hex(value: object) -> bytes | None:
    if value is None:
        return None
    if not isinstance(value, str) or len(value) != 64:
        raise PeerError("malformed", "a measurement in the identity is not 64 hex digits")
    try:
        return bytes.fromhex(value)
    except ValueError as error:
        raise PeerError("malformed", "a measurement in the identity is not 64 hex digits") from error
