"""Why evidence was refused, for the data owner: what the quote and its collateral say themselves, and what to do.

A verifier says which check failed; here the same evidence is read once more, unhurried, to say what was found and wanted.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from typing import Any

import dcap_qvl

from enclave_cc.crypto.x509 import Certificate, RevocationList
from enclave_cc.errors import EnclaveCcError, PeerError
from enclave_cc.owner.collateral.source import CollateralSource
from enclave_cc.owner.kbs.roots import RootStore
from enclave_cc.owner.policy.reasons import Reason
from enclave_cc.owner.verifier.quote import Origin, read_origin
from enclave_cc.owner.verifier.roots import TrustedRoot
from enclave_cc.wire.rcar import binding, messages
from enclave_cc.wire.rcar.initdata import InitData
from enclave_cc.wire.rcar.messages import Attestation
from enclave_cc.wire.sgx.collateral import Collateral, QeIdentity, TcbInfo, TcbLevel, format_moment
from enclave_cc.wire.sgx.quote import Quote

REFRESH = "enclave-cc kbs root add {root} --certificate ROOT.pem --collateral COLLATERAL.json"
_ACCEPTED = ("UpToDate", "SWHardeningNeeded")


class Diagnosis:
    """Explains refusals of evidence. Safe for many threads; never raises for what a client sent."""

    def __init__(self, roots: RootStore, collateral: CollateralSource, *, now: Callable[[], float] = time.time) -> None:
        self._roots = roots
        self._collateral = collateral
        self._now = now

    def explain(self, error: EnclaveCcError, tee: str, attestation: Attestation) -> Reason:
        """The tree for evidence of `tee` that was refused with `error`."""
        root = Reason(
            claim="evidence",
            found=error.what,
            expected="evidence that verifies",
            rule=f"evidence of {tee}",
            advice=error.fix,
            code=error.code if isinstance(error, PeerError) else None,
        )
        if error.code == "policy-invalid":
            return Reason(
                "attestation policy",
                error.what,
                "a policy that evaluates",
                "trust_claims",
                advice="correct the policy, or take its last switch back",
                command="enclave-cc policy rollback attestation",
            )
        try:
            inner = self._explain_sgx(error, attestation) if tee == "sgx" else ()
        except (PeerError, ValueError):  # not even readable: the error said so
            inner = ()
        return Reason(root.claim, root.found, root.expected, root.rule, advice=root.advice, code=root.code, because=inner)

    def describe_platform(self, sgx: Mapping[str, Any]) -> Mapping[str, Any]:
        """The TCB level that a platform would need, from its collateral; nothing when there is none."""
        fmspc = sgx.get("fmspc")
        root = next((root for root in self._roots.list_roots() if root.name == sgx.get("root")), None)
        if root is None or not isinstance(fmspc, str):
            return {}
        for ca in ("platform", "processor"):
            document = self._roots.find_collateral(root.name, fmspc, ca)
            if document is not None:
                try:
                    return _needed(TcbInfo.parse(Collateral.parse(document).tcb_info))
                except PeerError:
                    return {}
        return {}

    def _explain_sgx(self, error: EnclaveCcError, attestation: Attestation) -> tuple[Reason, ...]:
        raw = messages.parse_sgx_evidence(attestation.primary_evidence)
        quote, origin = Quote.parse(raw), read_origin(raw)
        named = next((root for root in self._roots.list_roots() if root.certificate == origin.root), None)
        match error.code:
            case "untrusted-root":
                return (self._explain_root(origin),)
            case "debug-enclave":
                return (
                    Reason(
                        "sgx.body.attributes.flags",
                        quote.body.encode()[48:56].hex(),
                        "bit 1 (DEBUG) clear",
                        "no debug enclave",
                        advice="the host can read a debug enclave's memory: run one that was built without --debug",
                        command="enclave-cc bundle build agent --out DIR",
                        code="debug-enclave",
                    ),
                )
            case "collateral-refused" if named is not None:
                return self._explain_collateral(origin, named)
            case "tcb-refused" if named is not None:
                return self._explain_tcb(raw, origin, named)
            case "quote-refused":
                return self._explain_binding(quote, attestation)
            case _:
                return ()

    def _explain_root(self, origin: Origin) -> Reason:
        certificate = Certificate.parse(origin.root)
        return Reason(
            "sgx.root",
            {"subject": certificate.common_name, "sha256": hashlib.sha256(origin.root).hexdigest()},
            [{"name": root.name, "sha256": hashlib.sha256(root.certificate).hexdigest()} for root in self._roots.list_roots()],
            "roots that the owner named",
            advice="if you trust who issues these platforms, name their root on the KBS's machine",
            command="enclave-cc kbs root add NAME --certificate ROOT.pem --collateral COLLATERAL.json",
            code="untrusted-root",
        )

    def _explain_collateral(self, origin: Origin, root: TrustedRoot) -> tuple[Reason, ...]:
        at, fmspc = int(self._now()), origin.fmspc.hex()
        command = REFRESH.format(root=root.name)
        found = self._collateral.find(origin, root, at)
        if found is None:
            have = [{"fmspc": each.fmspc, "ca": each.ca} for each in self._roots.list_collateral(root.name)]
            return (
                Reason(
                    "sgx.collateral",
                    None,
                    {"fmspc": fmspc, "ca": origin.pck_ca},
                    f"collateral of root {root.name}",
                    nearest=have or None,
                    advice="add the collateral of this platform, or name a service in [collateral] of kbs.toml",
                    command=command,
                    code="collateral-refused",
                ),
            )
        return tuple(
            Reason(
                f"sgx.collateral.{part}",
                f"valid {format_moment(start)} to {format_moment(end)}",
                f"valid at {format_moment(at)}",
                f"collateral of root {root.name} for FMSPC {fmspc}",
                nearest={"expired_seconds_ago": at - end} if at > end else {"valid_in_seconds": start - at},
                advice="fetch it anew" if at > end else "check the KBS's clock",
                command=command,
                code="collateral-refused",
            )
            for part, start, end in _windows(found.collateral)
            if not start <= at <= end
        )

    def _explain_tcb(self, raw: bytes, origin: Origin, root: TrustedRoot) -> tuple[Reason, ...]:
        found = self._collateral.find(origin, root, int(self._now()))
        pck = dcap_qvl.parse_quote(raw).pck_extension()
        if found is None or pck is None:
            return ()
        info = TcbInfo.parse(found.collateral.tcb_info)
        level = info.find_level(bytes(pck.cpu_svn), pck.pce_svn)
        return (
            Reason(
                "sgx.tcb_status",
                {"fmspc": origin.fmspc.hex(), "components": list(bytes(pck.cpu_svn)), "pce_svn": pck.pce_svn, **_show(level)},
                "a level that is not revoked",
                f"TCB info {info.evaluation_number} of FMSPC {origin.fmspc.hex()}",
                nearest=_needed(info),
                advice="update the platform's microcode and BIOS to the level that is needed, then provision it anew",
                code="tcb-refused",
            ),
        )

    def _explain_binding(self, quote: Quote, attestation: Attestation) -> tuple[Reason, ...]:
        reasons = []
        report_data = binding.pad(
            binding.compute_report_data(attestation.nonce, attestation.tee_public_key, attestation.additional_evidence)
        )
        if quote.body.report_data != report_data:
            reasons.append(
                Reason(
                    "sgx.body.report_data",
                    quote.body.report_data.hex(),
                    report_data.hex(),
                    "the quote binds nonce, TEE key and additional evidence",
                    advice="the evidence is of another session or key: attest again; if it stays so, somebody relays it",
                )
            )
        init_data = None if attestation.init_data is None else InitData.parse(attestation.init_data.body)
        digest = binding.pad(b"" if init_data is None else init_data.digest())
        if quote.body.config_id != digest:
            sent = "none was sent" if init_data is None else f"the digest of what was sent is {digest.hex()}"
            reasons.append(
                Reason(
                    "init_data",
                    quote.body.config_id.hex(),
                    digest.hex(),
                    "CONFIGID is the digest of the init-data",
                    nearest=sent,
                    advice="the enclave was started with other init-data than was sent: start the pod again",
                )
            )
        return tuple(reasons)


def _windows(collateral: Collateral) -> list[tuple[str, int, int]]:
    """(part, start, end) of each dated document."""
    tcb_info, qe_identity = TcbInfo.parse(collateral.tcb_info), QeIdentity.parse(collateral.qe_identity)
    root_crl, pck_crl = RevocationList.parse(collateral.root_ca_crl), RevocationList.parse(collateral.pck_crl)
    return [
        ("tcb_info", tcb_info.issue_date, tcb_info.next_update),
        ("qe_identity", qe_identity.issue_date, qe_identity.next_update),
        ("root_ca_crl", root_crl.this_update, root_crl.next_update),
        ("pck_crl", pck_crl.this_update, pck_crl.next_update),
    ]


def _needed(info: TcbInfo) -> dict[str, Any]:
    level = next((level for level in info.levels if level.status in _ACCEPTED), None)
    return {} if level is None else {"needed": {"components": list(level.components), "pce_svn": level.pce_svn, **_show(level)}}


def _show(level: TcbLevel | None) -> dict[str, Any]:
    if level is None:
        return {"status": "below every known level"}
    return {"status": level.status, "tcb_date": level.date, "advisory_ids": list(level.advisory_ids)}
