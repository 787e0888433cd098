"""RCAR's server side without HTTP: challenge, attestation, release.

    auth     Request      -> a session and its nonce
    attest   Attestation  -> evidence verified, policy applied, token bound to the session
    release  token + path -> policy, resource, JWE for the token's TEE key

What is given out, and every refusal of a client that has attested, is in the audit log before the client hears of it.
Each refusal is a `Denied` with an id; its reasons are in the decision log and nowhere else.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from enclave_cc.crypto import jwe
from enclave_cc.errors import PeerError, UsageError, foreign
from enclave_cc.owner.kbs import annotation
from enclave_cc.owner.kbs.absence import explain_absence
from enclave_cc.owner.kbs.audit_trail import AuditTrail
from enclave_cc.owner.kbs.decisions import DecisionLog, new_id
from enclave_cc.owner.kbs.diagnosis import Diagnosis
from enclave_cc.owner.kbs.evidence import EvidenceVerifier, VerifiedEvidence
from enclave_cc.owner.kbs.metrics import Metrics
from enclave_cc.owner.kbs.policies import PolicyStore
from enclave_cc.owner.kbs.problems import Denied
from enclave_cc.owner.kbs.recordings import Recorder
from enclave_cc.owner.kbs.sessions import Session, Sessions, answered_already
from enclave_cc.owner.kbs.tokens import TokenIssuer
from enclave_cc.owner.policy import appraisal, defaults, rego, release
from enclave_cc.owner.policy.reasons import Reason
from enclave_cc.owner.reference.values import ReferenceSource
from enclave_cc.owner.resources.store import ResourceStore
from enclave_cc.owner.storage.database import Connection
from enclave_cc.record import field, record
from enclave_cc.wire.rcar import binding, messages, token
from enclave_cc.wire.rcar.initdata import InitData
from enclave_cc.wire.rcar.uri import ResourcePath
from enclave_cc.wire.sgx.certification import parse_pem_certificates


@record
class KeyBroker:
    """The service itself; every part can be another implementation. Safe for many threads."""

    sessions: Sessions
    verifiers: Mapping[str, EvidenceVerifier]
    tokens: TokenIssuer
    policies: PolicyStore
    references: ReferenceSource
    resources: ResourceStore
    decisions: DecisionLog
    trail: AuditTrail
    recorder: Recorder
    diagnosis: Diagnosis
    identities: frozenset[bytes] = frozenset()  # DER of the certificates that attesters may know this KBS by
    rsa1_5: bool = False  # whether TEE keys may be of this deprecated form
    metrics: Metrics = field(default_factory=Metrics)
    now: Callable[[], float] = time.time

    def warm_up(self) -> None:
        """Compiles the active policies in this thread, so that the first attester does not wait for it."""
        for policy_id, rule in ((defaults.ATTESTATION_ID, appraisal.TRUST_CLAIMS), (defaults.RELEASE_ID, release.ALLOW)):
            rego.evaluate(self.policies.get(policy_id), (rule,), {})

    def auth(self, body: bytes) -> Session:
        """Opens a session. Raises `PeerError("malformed" | "kbs-protocol")`, `Denied` for a TEE not accepted here."""
        request = messages.Request.parse(body)
        if request.tee not in self.verifiers:
            reason = Reason(
                claim="tee",
                found=request.tee,
                expected=sorted(self.verifiers),
                rule="[attestation] tees in kbs.toml",
                advice="have the configuration name this kind of evidence, if it is meant",
            )
            raise self._deny("attest", "AttestationError", "quote-refused", reason, tee=request.tee)
        return self.sessions.create(request.tee)

    def attest(self, session_id: str, body: bytes) -> Session:
        """Judges an Attestation; the session returned has a token.

        1. The session is ours, of a TEE that is accepted here, and not answered before; an accepted one keeps its token.
        2. The message parses, and repeats the session's nonce.
        3. The init-data makes the attester trust this KBS and no other.
        4. Each piece of evidence verifies, and binds nonce, TEE key and init-data.
        5. The attestation policy gives a trustworthiness vector. A bad vector is no refusal: the token says it, and
           the release policy decides.

        A challenge is used up once an answer to it was judged. Of several answers at the same time the first to be
        settled counts, on whatever instance.

        Raises `PeerError("unauthenticated")` (1), `PeerError("malformed")` (2), `Denied` (2-5).
        """
        # 1
        session = self.sessions.open(session_id)
        if session.token is not None:
            return session
        if session.tee not in self.verifiers:
            raise PeerError("unauthenticated", "the session is of a kind of evidence that is no longer accepted here")
        # 2
        attestation = messages.Attestation.parse(body, rsa1_5=self.rsa1_5)
        if attestation.nonce != session.nonce:
            reason = Reason("runtime-data.nonce", attestation.nonce[:64], session.nonce, "the nonce of the session's challenge")
            self.sessions.settle(session, None)
            self.metrics.attestation_failures.add(session.tee)
            raise self._deny("attest", "AttestationError", "quote-refused", reason, tee=session.tee)
        verified = None
        try:
            # 3
            init_data = None if attestation.init_data is None else InitData.parse(attestation.init_data.body)
            if init_data is not None:
                self._check_audience(init_data)
            # 4
            with self.metrics.stages.time("verify"):
                verified = self._verify(session, attestation, init_data)
            # 5
            with self.metrics.stages.time("appraise"):
                appraisals = [self._appraise(evidence, attestation, init_data) for evidence in verified]
        except (PeerError, UsageError) as error:
            reason = self.diagnosis.explain(error, session.tee, attestation)
            code = error.code if isinstance(error, PeerError) else "kbs-denied"  # a broken policy is the owner's affair
            self.sessions.settle(session, None)
            self.metrics.attestation_failures.add(session.tee)
            denied = self._deny("attest", "AttestationError", code, reason, tee=session.tee)
            self.recorder.attest(denied.decision, session.tee, body, verified, code=code)
            raise denied from error
        decision, summary = new_id(), [_summarize(name, each) for name, each in appraisals]
        with self.metrics.stages.time("sign"):
            issued = self.tokens.issue(appraisals, token_id=decision)
        settlement = self.sessions.prepare(session, issued)
        allowed = self.decisions.prepare_allow("attest", decision, tee=session.tee, evidence=summary)

        def keep(db: Connection, index: int) -> bool:
            if not settlement.insert(db):
                return False
            allowed.insert(db, index)
            return True

        with self.metrics.stages.time("audit"):
            judged = [each for _, each in appraisals]
            entry = self.trail.attest(decision, session.tee, attestation, judged, summary, issued, keep)
        if entry is None:
            raise answered_already()
        self.metrics.attestation_successes.add(session.tee)
        self.decisions.conclude(allowed, audit=entry)
        self.recorder.attest(decision, session.tee, body, verified)
        return self.sessions.conclude(settlement)

    def _check_audience(self, init_data: InitData) -> None:
        """Raises `PeerError("quote-refused")` for an attester that would believe another server.

        Such a server could pass our challenge on, and then answer the attester with policies of its own and, since
        both would have one TEE key, with our resources.
        """
        named = init_data.find_kbs_certificate()
        if named is None:
            return
        try:
            certificates = parse_pem_certificates(named.replace("\r\n", "\n").strip().encode() + b"\n")
        except PeerError:
            certificates = []
        if not certificates or not self.identities.issuperset(certificates):
            raise PeerError(
                "quote-refused",
                "the attester's init-data pins a certificate that is not this KBS's: it may be answered by somebody else",
                "Give the node this KBS's kbs.crt, whole and alone, as [kbs] certificate.",
            )

    def _verify(self, session: Session, attestation: messages.Attestation, init_data: InitData | None) -> list[VerifiedEvidence]:
        key = attestation.tee_public_key
        primary = self.verifiers[session.tee].verify(
            attestation.primary_evidence,
            report_data=binding.compute_report_data(session.nonce, key, attestation.additional_evidence),
            init_data_digest=None if init_data is None else init_data.digest(),
        )
        devices = []
        for tee, evidence in sorted(attestation.parse_additional().items()):
            verifier = self.verifiers.get(tee)
            if verifier is None:
                raise PeerError("quote-refused", f"there is no verifier for additional evidence of {foreign(tee)}")
            report_data = binding.compute_device_report_data(session.nonce, key)
            devices.append(verifier.verify(evidence, report_data=report_data, init_data_digest=None))
        return [primary, *devices]

    def _appraise(
        self, verified: VerifiedEvidence, attestation: messages.Attestation, init_data: InitData | None
    ) -> tuple[str, appraisal.Appraisal]:
        evidence = annotation.annotate(verified, attestation, init_data)
        policy = self.policies.get(annotation.attestation_policy_id(verified.tee_class))
        return verified.tee_class, appraisal.appraise(policy, evidence, self.references)

    def token_of(self, session_id: str) -> str:
        """The token of an attested session. Raises `PeerError("unauthenticated")`."""
        session = self.sessions.open(session_id)
        if session.token is None:
            raise PeerError("unauthenticated", "the session has not attested")
        return session.token

    def release(self, token_text: str, request: release.Request) -> bytes:
        """The resource, as JWE text for the token's TEE key.

        1. The token is ours, or of an issuer that the owner lists, and has not expired.
        2. The release policy allows the request. Judged before the path is looked up: a denied attester does not
           learn which paths exist.
        3. The resource exists.

        Raises `PeerError("unauthenticated")` (1), `Denied` (2, 3).
        """
        # 1
        verified = self.tokens.verify(token_text)
        claims, key = verified.claims, verified.tee_key
        submods = claims.get("submods")
        attester = [_summarize_submod(name, submod) for name, submod in (submods.items() if isinstance(submods, Mapping) else ())]
        path, decision = "/".join(request.segments), new_id()
        who: dict[str, Any] = {"attester": attester, "token": token_text, "issuer": verified.issuer}
        if verified.issuer is None and isinstance(claims.get("jti"), str):
            who["attestation"] = claims["jti"]
        subject = who.get("attestation", "")

        members: dict[str, Any] = {"resource": str(request)}

        def record(code: str | None = None) -> None:
            self.recorder.release(decision, subject, request.to_json(), claims=None if subject else claims, code=code)

        def deny(variant: str, code: str, *reasons: Reason) -> Denied:
            denied = self.decisions.prepare_deny("release", code, reasons, decision, **members)
            self.decisions.conclude(denied, audit=self.trail.deny(decision, path, code, denied.insert, **who))
            record(code)
            return Denied(variant, code, decision)

        # 2
        self.metrics.policy_evaluations.add()
        try:
            with self.metrics.stages.time("policy"):
                verdict = release.decide(
                    self.policies.find_release(request.segments),
                    claims,
                    request,
                    self.references,
                    appraiser=self._find_appraiser,
                    platform=self.diagnosis.describe_platform,
                    now=self.now(),
                )
        except UsageError as error:  # a policy that fails to evaluate denies
            reason = Reason(
                str(request),
                error.what,
                "a policy that evaluates",
                defaults.RELEASE_ID,
                advice="correct the policy, or take its last switch back",
                command="enclave-cc policy rollback release",
            )
            self.metrics.policy_errors.add()
            raise deny("PolicyDeny", "kbs-denied", reason) from error
        who["policy"] = verdict.policy
        members |= {"attester": attester, "policy_version": verdict.policy.version}
        if verified.issuer is not None:
            members["token_issuer"] = verified.issuer
        if isinstance(verdict, release.Denial):
            self.metrics.policy_violations.add()
            raise deny("PolicyDeny", verdict.code, *verdict.reasons)
        self.metrics.policy_approvals.add()
        # 3
        try:
            with self.metrics.stages.time("fetch"):
                resource = self.resources.get(ResourcePath(*request.segments))
        except UsageError as error:
            raise deny("ResourceNotFound", "key-missing", explain_absence(self.resources, request)) from error
        with self.metrics.stages.time("encrypt"):
            answer = jwe.encrypt(resource.value.reveal(), key)
        allowed = self.decisions.prepare_allow("release", decision, **members, resource_version=resource.version)
        with self.metrics.stages.time("audit"):
            entry = self.trail.release(decision, path, resource.version, allowed.insert, **who)
        self.metrics.reads.add()
        self.decisions.conclude(allowed, audit=entry)
        record()
        return answer

    def _find_appraiser(self, tee_class: str) -> rego.Policy | None:
        try:
            return self.policies.get(annotation.attestation_policy_id(tee_class))
        except UsageError:
            return None

    def _deny(self, stage: str, variant: str, code: str, *reasons: Reason, **members: Any) -> Denied:
        return Denied(variant, code, self.decisions.deny(stage, code, reasons, **members).id)


def _summarize(tee_class: str, each: appraisal.Appraisal) -> dict[str, Any]:
    return _summarize_submod(tee_class, each.to_submod())


def _summarize_submod(name: str, submod: Any) -> dict[str, Any]:
    """Who it was, in one line of a log: status, measurement, platform root."""
    evidence = submod.get(token.EVIDENCE, {}) if isinstance(submod, Mapping) else {}
    summary: dict[str, Any] = {"name": name, "status": submod.get(token.STATUS) if isinstance(submod, Mapping) else None}
    sgx = evidence.get("sgx") if isinstance(evidence, Mapping) else None
    if isinstance(sgx, Mapping):
        body = sgx.get("body", {})
        summary |= {"mr_enclave": body.get("mr_enclave"), "tcb_status": sgx.get("tcb_status")}
        summary |= {name: sgx[name] for name in ("root", "simulated") if name in sgx}
    return summary
