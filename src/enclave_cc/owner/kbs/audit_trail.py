"""What of the KBS's doings goes into the audit log, and in which words (docs/formats/audit.md, kinds).

Every method returns when the entry is durable, those of the broker with its index: call it before what it tells of leaves
the KBS. What the broker keeps `beside` an entry is in its transaction, so that one wait for the disk does for both.
"""

from __future__ import annotations

import hashlib
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from enclave_cc import __version__
from enclave_cc.errors import foreign
from enclave_cc.owner.audit import kinds
from enclave_cc.owner.audit.kinds import Draft
from enclave_cc.owner.audit.log import AuditLog, Beside
from enclave_cc.owner.kbs.admin import Administrator
from enclave_cc.owner.kbs.decisions import Log
from enclave_cc.owner.policy import defaults
from enclave_cc.owner.policy.appraisal import Appraisal
from enclave_cc.owner.policy.rego import Policy
from enclave_cc.owner.storage.database import Connection
from enclave_cc.record import record
from enclave_cc.wire.audit.entry import is_subject
from enclave_cc.wire.rcar import canonical
from enclave_cc.wire.rcar.messages import Attestation


@record
class AuditTrail:
    """`events`: the log on standard error, which hears of administrators' changes too. Safe for many threads.

    Raises `EnvironmentFault` where the entry cannot be made durable: then nothing may leave the KBS."""

    log: AuditLog
    events: Log

    def start(self, policies: Sequence[tuple[str, int]]) -> None:
        """An instance begins to serve; `policies`: (id, active version)."""
        active = [{"id": policy_id, "version": version} for policy_id, version in policies]
        key = str(self.log.keys[-1])
        self._append(
            kinds.START,
            {"instance": _instance(), "software": __version__, "origin": self.log.origin, "key": key, "policies": active},
        )

    def stop(self) -> None:
        self._append(kinds.STOP, {"instance": _instance(), "software": __version__})

    def attest(
        self,
        decision: str,
        tee: str,
        attestation: Attestation,
        appraisals: Sequence[Appraisal],
        attester: Sequence[Mapping[str, Any]],
        token: str,
        beside: Beside,
    ) -> int | None:
        """Evidence was accepted and `token` is about to be given out. None when `beside` said no."""
        document = {
            "tee": tee,
            "attester": [_clean(each) for each in attester],
            "evidence": _digest(canonical.encode(attestation.primary_evidence)),
            "token": _digest(token.encode()),
            "policies": [_describe(each.policy) for each in appraisals],
            "references": _find_matches(appraisals),
        }
        if attestation.additional_evidence:
            document["additional_evidence"] = _digest(attestation.additional_evidence.encode())
        return self._append(kinds.ATTESTATION, document, beside, decision=decision)

    def release(self, decision: str, path: str, version: int, beside: Callable[[Connection, int], None], **who: Any) -> int:
        """A resource is about to be given out. `who`: as `_describe_client` takes."""
        document = {**_describe_client(**who), "resource_version": version}
        return self._append_about(path, kinds.RELEASE, document, beside, decision=decision, attestation=who.get("attestation"))

    def deny(self, decision: str, path: str, code: str, beside: Callable[[Connection, int], None], **who: Any) -> int:
        """An attested client is about to be refused. Why is in the decision log, for the KBS's owner: reasons quote
        reference values, which may be of others than whom the resource belongs to."""
        document = {**_describe_client(**who), "code": code}
        return self._append_about(path, kinds.DENIAL, document, beside, decision=decision, attestation=who.get("attestation"))

    def change(self, kind: str, by: Administrator | None, members: Mapping[str, Any], *, subject: str | None = None) -> None:
        """An administrator has changed, or is about to read, something. `by`: None for a command on the KBS's directory."""
        who: Mapping[str, Any] = kinds.LOCAL
        if by is not None:
            who = {"role": by.role, "subject": by.subject} | ({"provider": by.provider} if by.provider else {})
        self._append(kind, {"by": who, **members}, subject=subject)
        self.events.write(kind, members if subject is None else {"resource": subject, **members})

    def set_policy(self, by: Administrator | None, policy: Policy, kind: str = kinds.POLICY_SET) -> None:
        """As `change`, for a policy version that was stored or made active."""
        members = {"policy": policy.id, "version": policy.version, "digest": policy.digest}
        self.change(kind, by, members, subject=_find_scope(policy.id))

    def drop_policy(self, by: Administrator | None, policy_id: str) -> None:
        """As `change`, for a policy of which no version is active any more."""
        self.change(kinds.POLICY_DEACTIVATED, by, {"policy": policy_id}, subject=_find_scope(policy_id))

    def _append_about(
        self, path: str, kind: str, document: Mapping[str, Any], beside: Callable[[Connection, int], None], **ids: str | None
    ) -> int:
        def keep(db: Connection, index: int) -> bool:
            beside(db, index)
            return True

        index = self._append(kind, document, keep, subject=path, **ids)
        assert index is not None  # noqa: S101 (`keep` never says no)
        return index

    def _append(self, kind: str, document: Mapping[str, Any], beside: Beside | None = None, **ids: str | None) -> int | None:
        receipt = self.log.append_with(Draft.make(kind, document, **ids), beside)
        return None if receipt is None else receipt.index


def _describe_client(
    *,
    attester: Sequence[Mapping[str, Any]],
    token: str,
    policy: Policy | None = None,
    attestation: str | None = None,
    issuer: str | None = None,
) -> dict[str, Any]:
    """`attestation`: the decision that gave out the token, if it was ours; `issuer`: who did, if not."""
    document: dict[str, Any] = {"attester": [_clean(each) for each in attester], "token": _digest(token.encode())}
    if policy is not None:
        document["policies"] = [_describe(policy)]
    if issuer is not None:
        document["token_issuer"] = issuer
    return document


def _clean(attester: Mapping[str, Any]) -> dict[str, Any]:
    """What a token of another issuer claims may be of any type and size."""
    return {name: value if value is None or isinstance(value, bool) else foreign(value) for name, value in attester.items()}


def _describe(policy: Policy) -> dict[str, Any]:
    return {"id": policy.id, "version": policy.version, "digest": policy.digest}


def _find_scope(policy_id: str) -> str | None:
    """The path that a release policy is for; None for an attestation policy."""
    head, _, path = policy_id.partition("/")
    return path if head == defaults.RELEASE_ID and is_subject(path) else None


def _find_matches(appraisals: Sequence[Appraisal]) -> dict[str, list[Any]]:
    """Of the reference values that policies asked for, those that stand in the evidence."""
    matches: dict[str, list[Any]] = {}
    for each in appraisals:
        claimed: set[object] = set()
        _collect(each.evidence, claimed)
        for name, values in each.queried.items():
            found = [value for value in _items(values) if type(value) in (str, int) and value in claimed]
            if found:
                matches[name] = found
    return matches


def _items(values: object) -> Sequence[object]:
    return values if isinstance(values, list | tuple) else [values]


def _collect(value: object, into: set[object]) -> None:
    # Exact types, as JSON has: `isinstance` of a Mapping would take longer than all the rest.
    kind = type(value)
    if kind is dict:
        for member in value.values():  # type: ignore[attr-defined]
            _collect(member, into)
    elif kind is list or kind is tuple:
        for member in value:  # type: ignore[attr-defined]
            _collect(member, into)
    elif kind is str or kind is int:
        into.add(value)


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _instance() -> str:
    return f"{socket.gethostname()}:{os.getpid()}"
