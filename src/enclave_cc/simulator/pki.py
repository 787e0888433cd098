"""The simulated platform's PKI: root CA, platform CA, PCK and TCB signing certificates, CRLs, TCB info, QE identity.

Only the names that upstream's parsers insist on are Intel's ("Intel SGX PCK Platform CA"); every organization and every
other name says Simulated and NOT Intel.
"""

from __future__ import annotations

import secrets
import time
from typing import TYPE_CHECKING

from enclave_cc.crypto import x509
from enclave_cc.crypto.ecdsa import SigningKey
from enclave_cc.simulator import quoting
from enclave_cc.simulator.pck_extension import OID, PckExtension
from enclave_cc.wire.sgx.certification import encode_pem_certificate, parse_pem_certificates
from enclave_cc.wire.sgx.collateral import TCB_COMPONENTS, Collateral, QeIdentity, QeLevel, TcbInfo, TcbLevel, format_moment

if TYPE_CHECKING:
    from enclave_cc.simulator.platform import Condition, Platform

ORGANIZATION = "enclave-cc simulator, NOT Intel"
ROOT_CA = "Simulated SGX Root CA, NOT Intel"
PLATFORM_CA = "Intel SGX PCK Platform CA"
PCK = "Simulated SGX PCK Certificate, NOT Intel"
TCB_SIGNING = "Simulated SGX TCB Signing, NOT Intel"

_DAY = 86400
_CERTIFICATE_DAYS = 20 * 365
COLLATERAL_DAYS = 30
_CLOCK_SKEW = 300  # verifiers whose clock is behind ours
_EVALUATION_NUMBER = 1
# A level that the platform no longer reaches exists only for these.
_PAST_STATUSES = {"OutOfDate", "OutOfDateConfigurationNeeded", "Revoked"}


def create(platform: Platform) -> None:
    """Writes keys and certificates into the platform's directory. Raises `OSError`."""
    from enclave_cc.simulator.platform import write_private

    start = int(time.time()) - _DAY
    keys = {name: SigningKey.generate() for name in ("root-ca", "platform-ca", "pck", "tcb-signing")}
    extension = PckExtension(
        ppid=platform.ppid,
        cpu_svn=platform.cpu_svn,
        pce_svn=platform.pce_svn,
        pce_id=platform.pce_id,
        fmspc=platform.fmspc,
        platform_instance_id=platform.platform_instance_id,
    ).encode()

    def issue(
        name: str,
        common_name: str,
        issuer: x509.Certificate | None,
        issuer_name: str,
        path_length: int | None = None,
        extensions: tuple[tuple[str, bytes], ...] = (),
    ) -> x509.Certificate:
        subject = x509.Subject(
            common_name=common_name,
            organization=ORGANIZATION,
            serial=secrets.randbits(158) | 1 << 158,
            not_before=start,
            not_after=start + _CERTIFICATE_DAYS * _DAY,
            path_length=path_length,
            extensions=extensions,
        )
        der = x509.issue_certificate(subject, keys[name].public, issuer=issuer, issuer_key=keys[issuer_name])
        write_private(platform.directory / f"{name}.crt", encode_pem_certificate(der))
        write_private(platform.directory / f"{name}.pem", keys[name].to_pem())
        return x509.Certificate.parse(der)

    root = issue("root-ca", ROOT_CA, None, "root-ca", path_length=1)
    platform_ca = issue("platform-ca", PLATFORM_CA, root, "root-ca", path_length=0)
    issue("pck", PCK, platform_ca, "platform-ca", extensions=((OID, extension),))
    issue("tcb-signing", TCB_SIGNING, root, "root-ca")


def issue_collateral(platform: Platform, now: int, condition: Condition) -> Collateral:
    """Fresh CRLs, TCB info and QE identity, valid from shortly before `now` for 30 days."""
    issued, expires = now - _CLOCK_SKEW, now + COLLATERAL_DAYS * _DAY
    root, platform_ca, pck = (_certificate(platform, name) for name in ("root-ca", "platform-ca", "pck"))
    root_key, platform_ca_key = _key(platform, "root-ca"), _key(platform, "platform-ca")
    signer = SigningKey.generate() if condition.wrong_signer else _key(platform, "tcb-signing")
    tcb_info = TcbInfo(
        issue_date=issued,
        next_update=expires,
        fmspc=condition.fmspc or platform.fmspc,
        pce_id=platform.pce_id,
        evaluation_number=_EVALUATION_NUMBER,
        levels=_levels(platform, condition, format_moment(issued)),
    ).encode()
    qe = quoting.qe_body(platform)
    attributes = qe.attributes.flags.to_bytes(8, "little") + bytes(8)
    qe_identity = QeIdentity(
        issue_date=issued,
        next_update=expires,
        evaluation_number=_EVALUATION_NUMBER,
        mr_signer=qe.mr_signer,
        isv_prod_id=qe.isv_prod_id,
        levels=(QeLevel(isv_svn=qe.isv_svn, date=format_moment(issued), status="Revoked" if condition.qe_revoked else "UpToDate"),),
    ).encode(attributes=attributes, attributes_mask=b"\xfb" + b"\xff" * 7 + bytes(8))
    tcb_chain = (platform.read("tcb-signing.crt") + platform.read("root-ca.crt")).decode("ascii")
    return Collateral(
        pck_crl_issuer_chain=(platform.read("platform-ca.crt") + platform.read("root-ca.crt")).decode("ascii"),
        root_ca_crl=x509.issue_crl(
            root,
            root_key,
            number=1,
            this_update=issued,
            next_update=expires,
            revoked=(platform_ca.serial,) if condition.platform_ca_revoked else (),
        ),
        pck_crl=x509.issue_crl(
            platform_ca,
            platform_ca_key,
            number=1,
            this_update=issued,
            next_update=expires,
            revoked=(pck.serial,) if condition.pck_revoked else (),
        ),
        tcb_info_issuer_chain=tcb_chain,
        tcb_info=tcb_info,
        tcb_info_signature=signer.sign(tcb_info.encode("ascii")),
        qe_identity_issuer_chain=tcb_chain,
        qe_identity=qe_identity,
        qe_identity_signature=signer.sign(qe_identity.encode("ascii")),
    )


def _levels(platform: Platform, condition: Condition, date: str) -> tuple[TcbLevel, ...]:
    levels = [
        TcbLevel(
            components=tuple(platform.cpu_svn),
            pce_svn=platform.pce_svn,
            date=date,
            status=condition.tcb_status,
            advisory_ids=condition.advisory_ids,
        )
    ]
    if condition.tcb_status in _PAST_STATUSES:
        better = (platform.cpu_svn[0] + 1, *platform.cpu_svn[1:TCB_COMPONENTS])
        levels.insert(0, TcbLevel(components=better, pce_svn=platform.pce_svn, date=date, status="UpToDate"))
    return tuple(levels)


def _certificate(platform: Platform, name: str) -> x509.Certificate:
    return x509.Certificate.parse(parse_pem_certificates(platform.read(f"{name}.crt"))[0])


def _key(platform: Platform, name: str) -> SigningKey:
    return SigningKey.from_pem(platform.read(f"{name}.pem"))
