"""Verifies a DCAP quote offline: quote, collateral, trusted roots and a time in; claims out.

PyPI's dcap-qvl is the judge. Before it is asked, the checks that can be told apart are made here, each with its own
code; a quote must pass both.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable
from typing import Any

import dcap_qvl

from enclave_cc.crypto.x509 import Certificate
from enclave_cc.errors import PeerError, foreign
from enclave_cc.owner.verifier.claims import Claims
from enclave_cc.owner.verifier.collateral import PCK_CAS, CollateralVerifier, VerifiedCollateral, verify_collateral
from enclave_cc.owner.verifier.roots import TrustedRoot
from enclave_cc.record import record
from enclave_cc.wire.sgx.certification import CertificationData
from enclave_cc.wire.sgx.collateral import Collateral, TcbLevel
from enclave_cc.wire.sgx.quote import INTEL_QE_VENDOR_ID, Quote

_AUTHENTICATION_DATA_SIZE = 32
_FLAGS = {"True": True, "False": False, "Undefined": None}
# Platforms attest again and again with one certificate chain, and are judged by one collateral: both are read once.
_CHAINS_KEPT, _COLLATERALS_KEPT, _ROOTS_KEPT = 256, 64, 64
# `read_origin` and `verify_quote` follow each other with one quote, in each of a few threads.
_QUOTES_KEPT = 32


@record
class Origin:
    """Which platform a quote claims to come from: enough to choose collateral, proof of nothing."""

    fmspc: bytes
    pck_ca: str  # "platform" or "processor"
    root: bytes  # DER
    pck_ca_certificate: Certificate
    pck: bytes  # DER of the platform's own certificate

    def check_chain(self, at: int) -> None:
        """That the root vouches for this platform at the time `at`: the chain alone, not the quote, nor revocation.

        Raises `PeerError("quote-refused")`.
        """
        self.pck_ca_certificate.check_issued_by(Certificate.parse(self.root), at, code="quote-refused")
        Certificate.parse(self.pck).check_issued_by(self.pck_ca_certificate, at, code="quote-refused")


def read_origin(quote: bytes) -> Origin:
    """Raises `PeerError("malformed")`."""
    chain = _read_chain(_parse(quote).certification)
    return Origin(bytes(chain.extension.fmspc), PCK_CAS[chain.ca.common_name], chain.root, chain.ca, chain.leaf.der)


def verify_quote(
    quote: bytes,
    collateral: Collateral,
    *,
    roots: Iterable[TrustedRoot],
    at: int,
    collaterals: CollateralVerifier | None = None,
) -> Claims:
    """Claims of a quote at the time `at` (seconds since 1970). `collaterals` remembers collateral between calls.

    Raises `PeerError`: "malformed", "untrusted-root", "debug-enclave", "collateral-refused", "tcb-refused",
    "quote-refused". Callers still check what the report data must bind, whom they expect in MRENCLAVE or MRSIGNER, and
    whether they accept the TCB status: all but "Revoked" pass here.

    1. the quote's form: version 3, ECDSA-P256, one canonical PCK chain of three
    2. the chain's root is, byte for byte, one that the owner trusts
    3. it is no debug enclave
    4. the collateral is of this root and platform, signed, and valid now (`verify_collateral`)
    5. the PCK certificate is issued by the PCK CA, valid, and not revoked
    6. platform and quoting enclave reach a TCB level, and it is not revoked
    7. dcap-qvl verifies everything: signatures over body, QE report and attestation key, QE identity, and 4-6 again
    8. what it verified is what was parsed here
    """
    # 1
    parsed = _parse(quote)
    chain = _read_chain(parsed.certification)
    pck_ca, pck = chain.ca, chain.extension
    if parsed.header.qe_vendor_id != INTEL_QE_VENDOR_ID:
        raise PeerError("quote-refused", "the quote is by an unknown vendor's quoting enclave")
    if len(parsed.authentication_data) != _AUTHENTICATION_DATA_SIZE:
        raise PeerError("malformed", f"the quote's authentication data does not have {_AUTHENTICATION_DATA_SIZE} bytes")
    # 2
    trusted = next((root for root in roots if root.certificate == chain.root), None)
    if trusted is None:
        raise PeerError("untrusted-root", f"the quote chains to {foreign(_root_name(chain.root))!r}, which nobody named as trusted")
    root = _read_root(chain.root)
    # 3
    if parsed.body.attributes.debug:
        raise PeerError("debug-enclave", "the quote is of a debug enclave")
    # 4
    verify = verify_collateral if collaterals is None else collaterals.verify
    verified = verify(collateral, root=root, pck_ca=pck_ca, fmspc=bytes(pck.fmspc), pce_id=bytes(pck.pce_id), at=at)
    # 5
    leaf = chain.leaf.check_issued_by(pck_ca, at, code="quote-refused")
    if verified.pck_crl.names(leaf):
        raise PeerError("quote-refused", "the platform's PCK certificate is revoked")
    # 6
    level = _check_tcb(verified, bytes(pck.cpu_svn), pck.pce_svn, parsed.qe_report.isv_svn)
    # 7
    judged = _judge(quote, collateral, chain.root, at)
    # 8
    report = judged["report"]["SgxEnclave"]
    body = parsed.body
    theirs = (report["mr_enclave"], report["mr_signer"], report["attributes"], report["report_data"])
    ours = (body.mr_enclave.hex(), body.mr_signer.hex(), body.encode()[48:64].hex(), body.report_data.hex())
    if theirs != ours or judged["platform"]["tcb_level"]["tcbStatus"] != level.status:
        raise PeerError("quote-refused", "two readings of the quote differ")
    return _make_claims(parsed, judged, trusted, level)


@record
class _Chain:
    """A PCK certificate chain, read; nothing in it is verified."""

    leaf: Certificate
    extension: dcap_qvl.PckExtension
    ca: Certificate
    root: bytes  # DER


@functools.lru_cache(_QUOTES_KEPT)
def _parse(quote: bytes) -> Quote:
    return Quote.parse(quote)


@functools.lru_cache(_CHAINS_KEPT)
def _read_chain(certification: CertificationData) -> _Chain:
    pck, ca_der, root = certification.certificates()
    ca = Certificate.parse(ca_der)
    if ca.common_name not in PCK_CAS:
        raise PeerError("malformed", f"the PCK certificate's issuer is {foreign(ca.common_name)!r}, no PCK CA")
    try:
        extension = dcap_qvl.parse_pck_extension_from_pem(certification.data)
    except ValueError as error:
        raise PeerError("malformed", f"the PCK certificate cannot be read: {foreign(error)}") from error
    return _Chain(Certificate.parse(pck), extension, ca, root)


@functools.lru_cache(_ROOTS_KEPT)
def _read_root(der: bytes) -> Certificate:
    return Certificate.parse(der)


@functools.lru_cache(_COLLATERALS_KEPT)
def _hand_over(collateral: Collateral) -> dcap_qvl.QuoteCollateralV3:
    return dcap_qvl.QuoteCollateralV3.from_json(collateral.encode().decode("ascii"))


def _root_name(der: bytes) -> str:
    try:
        return Certificate.parse(der).common_name
    except PeerError:
        return "a root that cannot be read"


def _check_tcb(verified: VerifiedCollateral, components: bytes, pce_svn: int, qe_isv_svn: int) -> TcbLevel:
    level = verified.tcb_info.find_level(components, pce_svn)
    qe_level = verified.qe_identity.find_level(qe_isv_svn)
    if level is None or qe_level is None:
        raise PeerError("tcb-refused", "the platform or its quoting enclave is below every known TCB level")
    if "Revoked" in (level.status, qe_level.status):
        raise PeerError(
            "tcb-refused", "the platform's TCB level is revoked", "Update the platform; a revoked level is never accepted."
        )
    return level


def _judge(quote: bytes, collateral: Collateral, root: bytes, at: int) -> dict[str, Any]:
    try:
        verifier = dcap_qvl.QuoteVerifier(root)
        claims = verifier.verify_with_policy(
            quote,
            _hand_over(collateral),
            at,
            dcap_qvl.QuotePolicy.claims_only(at),
        )
    except ValueError as error:
        raise PeerError("quote-refused", f"the quote does not verify: {foreign(error)}") from error
    document: dict[str, Any] = json.loads(claims.to_json())
    return document


def _make_claims(parsed: Quote, judged: dict[str, Any], root: TrustedRoot, level: TcbLevel) -> Claims:
    tcb, platform = judged["tcb"], judged["platform"]
    pck = platform["pck"]
    instance = pck["platform_instance_id"]
    return Claims(
        header=parsed.header,
        body=parsed.body,
        tcb_status=tcb["status"],
        tcb_date=level.date,
        advisory_ids=tuple(tcb["advisory_ids"]),
        tcb_evaluation_number=tcb["eval_data_number"],
        fmspc=bytes(pck["fmspc"]),
        pce_id=bytes(pck["pce_id"]),
        ppid=bytes(pck["ppid"]),
        platform_instance_id=None if instance is None else bytes(instance),
        sgx_type=pck["sgx_type"],
        dynamic_platform=_FLAGS[pck["dynamic_platform"]],
        cached_keys=_FLAGS[pck["cached_keys"]],
        smt_enabled=_FLAGS[pck["smt_enabled"]],
        earliest_issue_date=judged["earliest_issue_date"],
        latest_issue_date=judged["latest_issue_date"],
        earliest_expiration_date=judged["earliest_expiration_date"],
        pck_crl_number=platform["pck_crl_num"],
        root_ca_crl_number=platform["root_ca_crl_num"],
        root_key_id=bytes(platform["root_key_id"]),
        root=root.name,
        simulated=root.simulated,
    )
