"""Collateral judged on its own: is it of this root, for this platform, signed, and valid now?

dcap-qvl checks all of this again. Here it is done first, so that a refusal can say whether the collateral or the
quote is at fault, and so that no single implementation stands between a forged document and a released key.
"""

from __future__ import annotations

import threading
from collections import OrderedDict

from enclave_cc.crypto import ecdsa
from enclave_cc.crypto.x509 import Certificate, RevocationList
from enclave_cc.errors import PeerError
from enclave_cc.record import record
from enclave_cc.wire.sgx.certification import parse_pem_certificates
from enclave_cc.wire.sgx.collateral import Collateral, QeIdentity, TcbInfo

# The names by which a PCK certificate's issuer says which of the two CAs it is; the same for simulated platforms.
PCK_CAS = {"Intel SGX PCK Platform CA": "platform", "Intel SGX PCK Processor CA": "processor"}
_REFUSED = "collateral-refused"
_KEPT = 64


@record
class VerifiedCollateral:
    """The parts that judge a quote, and from when to when (seconds since 1970, inclusive) all of them are valid."""

    root_crl: RevocationList
    pck_crl: RevocationList
    tcb_info: TcbInfo
    qe_identity: QeIdentity
    start: int
    end: int


class CollateralVerifier:
    """`verify_collateral` that remembers what verified: signatures do not change, only the time does. For many threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._verified: OrderedDict[tuple[Collateral, bytes, bytes, bytes, bytes], VerifiedCollateral] = OrderedDict()

    def verify(
        self, collateral: Collateral, *, root: Certificate, pck_ca: Certificate, fmspc: bytes, pce_id: bytes, at: int
    ) -> VerifiedCollateral:
        """As `verify_collateral`."""
        key = (collateral, root.der, pck_ca.der, fmspc, pce_id)
        with self._lock:
            known = self._verified.get(key)
        if known is None or not known.start <= at <= known.end:  # when expired: once more, to say what expired
            known = verify_collateral(collateral, root=root, pck_ca=pck_ca, fmspc=fmspc, pce_id=pce_id, at=at)
            with self._lock:
                self._verified[key] = known
                if len(self._verified) > _KEPT:
                    self._verified.popitem(last=False)
        return known


def verify_collateral(
    collateral: Collateral, *, root: Certificate, pck_ca: Certificate, fmspc: bytes, pce_id: bytes, at: int
) -> VerifiedCollateral:
    """`collateral`'s parts. Raises `PeerError`: "malformed", or "collateral-refused".

    1. all issuer chains end in the root; the root's own CRL is by it, and valid
    2. the PCK CA is issued by the root and not revoked; the PCK CRL is by it, and valid
    3. TCB info: signer issued by the root and not revoked, signature, of SGX v3, valid, for this platform
    4. QE identity: the same for its signer and signature, of SGX's quoting enclave v2, valid
    """
    # 1
    _check_chain(collateral.pck_crl_issuer_chain, root, "PCK CRL")
    tcb_info_signer = Certificate.parse(_check_chain(collateral.tcb_info_issuer_chain, root, "TCB info"))
    qe_identity_signer = Certificate.parse(_check_chain(collateral.qe_identity_issuer_chain, root, "QE identity"))
    root.check_valid(at, code=_REFUSED)
    root_crl = RevocationList.parse(collateral.root_ca_crl).check_issued_by(root, at, code=_REFUSED)
    # 2 - by the CA that the quote names, not by whatever CA the collateral brings along
    pck_ca.check_issued_by(root, at, code=_REFUSED)
    if root_crl.names(pck_ca):
        raise PeerError(_REFUSED, "the PCK CA's certificate is revoked")
    pck_crl = RevocationList.parse(collateral.pck_crl).check_issued_by(pck_ca, at, code=_REFUSED)
    # 3
    _check_signed(
        collateral.tcb_info,
        collateral.tcb_info_signature,
        tcb_info_signer,
        root,
        root_crl,
        at,
        "TCB info",
    )
    tcb_info = TcbInfo.parse(collateral.tcb_info)
    _check_window(tcb_info.issue_date, tcb_info.next_update, at, "TCB info")
    if (tcb_info.fmspc, tcb_info.pce_id) != (fmspc, pce_id):
        raise PeerError(_REFUSED, f"the TCB info is for FMSPC {tcb_info.fmspc.hex()}, the quote of {fmspc.hex()}")
    # 4
    _check_signed(
        collateral.qe_identity,
        collateral.qe_identity_signature,
        qe_identity_signer,
        root,
        root_crl,
        at,
        "QE identity",
    )
    qe_identity = QeIdentity.parse(collateral.qe_identity)
    _check_window(qe_identity.issue_date, qe_identity.next_update, at, "QE identity")
    authorities = (root, pck_ca, tcb_info_signer, qe_identity_signer)
    return VerifiedCollateral(
        root_crl,
        pck_crl,
        tcb_info,
        qe_identity,
        start=max(
            *(certificate.not_before for certificate in authorities),
            *(crl.this_update for crl in (root_crl, pck_crl)),
            *(document.issue_date for document in (tcb_info, qe_identity)),
        ),
        end=min(
            *(certificate.not_after for certificate in authorities),
            *(part.next_update for part in (root_crl, pck_crl, tcb_info, qe_identity)),
        ),
    )


def find_window(collateral: Collateral) -> tuple[int, int]:
    """From when to when (seconds since 1970, inclusive) all dated documents of `collateral` hold; of its certificates
    nothing is said. Nothing is verified. Raises `PeerError("malformed")`."""
    documents = (TcbInfo.parse(collateral.tcb_info), QeIdentity.parse(collateral.qe_identity))
    crls = (RevocationList.parse(collateral.root_ca_crl), RevocationList.parse(collateral.pck_crl))
    return (
        max(*(each.issue_date for each in documents), *(each.this_update for each in crls)),
        min(each.next_update for each in (*documents, *crls)),
    )


def name_platform(collateral: Collateral) -> tuple[bytes, bytes, str]:
    """Whose collateral it claims to be: (root as DER, FMSPC, "platform" or "processor"). Nothing is verified.

    Raises `PeerError("malformed" | "collateral-refused")`.
    """
    chain = _parse_chain(collateral.pck_crl_issuer_chain)
    if len(chain) != 2:
        raise PeerError(_REFUSED, "the PCK CRL's issuer chain is not a CA and its root")
    kind = PCK_CAS.get(Certificate.parse(chain[0]).common_name)
    if kind is None:
        raise PeerError(_REFUSED, "the PCK CRL is not by a PCK platform or processor CA")
    return chain[1], TcbInfo.parse(collateral.tcb_info).fmspc, kind


def _parse_chain(pem: str) -> list[bytes]:
    return parse_pem_certificates(pem.encode("utf-8", "replace").replace(b"\r\n", b"\n").strip() + b"\n")


def _check_chain(pem: str, root: Certificate, name: str) -> bytes:
    """DER of the chain's leaf."""
    chain = _parse_chain(pem)
    if len(chain) != 2 or chain[1] != root.der:
        raise PeerError(_REFUSED, f"the {name}'s issuer chain does not end in the quote's root")
    return chain[0]


def _check_signed(
    text: str, signature: bytes, signer: Certificate, root: Certificate, root_crl: RevocationList, at: int, name: str
) -> None:
    signer.check_issued_by(root, at, code=_REFUSED)
    if root_crl.names(signer):
        raise PeerError(_REFUSED, f"the certificate of the {name}'s signer is revoked")
    ecdsa.verify(
        signer.public_key,
        signature,
        text.encode("utf-8", "replace"),
        code=_REFUSED,
        what=f"the {name}'s signature does not fit",
    )


def _check_window(start: int, end: int, at: int, name: str) -> None:
    if not start <= at <= end:
        raise PeerError(_REFUSED, f"the {name} is not valid at that time")
