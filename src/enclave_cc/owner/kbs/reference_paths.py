"""Administrators' paths: reference values."""

from __future__ import annotations

import hashlib
import json
import re
import time

from enclave_cc.crypto.signature import PublicKey
from enclave_cc.errors import PeerError
from enclave_cc.owner.audit import kinds
from enclave_cc.owner.kbs.audit_trail import AuditTrail
from enclave_cc.owner.kbs.http import HttpAnswer, items_answer, json_answer, take_number
from enclave_cc.owner.kbs.routing import Call, Route
from enclave_cc.owner.reference import rvps, statement
from enclave_cc.owner.reference import values as reference
from enclave_cc.owner.reference.store import ReferenceStore
from enclave_cc.record import record, replace
from enclave_cc.wire.rcar import canonical, messages

_ADMIN = f"{messages.PREFIX}/admin/reference-values"
_NAMES = 100  # in the audit log; a request of more has its digest there
_SIGNERS = f"{messages.PREFIX}/admin/reference-signers"
_SIGNER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")


@record
class ReferencePaths:
    references: ReferenceStore
    trail: AuditTrail

    def routes(self) -> tuple[Route, ...]:
        return (
            Route("POST", f"{messages.PREFIX}/reference-value", self._register),
            Route("GET", f"{messages.PREFIX}/reference-value/{{id*}}", self._query),
            Route("GET", _ADMIN, self._list),
            Route("POST", _ADMIN, self._add),
            Route("DELETE", _ADMIN, self._remove),
            Route("POST", f"{_ADMIN}/signed", self._add_signed),
            Route("POST", f"{_ADMIN}/retire", self._retire),
            Route("POST", f"{_ADMIN}/restore", self._restore),
            Route("GET", _SIGNERS, self._list_signers),
            Route("POST", _SIGNERS, self._add_signer),
            Route("DELETE", f"{_SIGNERS}/{{name}}", self._remove_signer),
        )

    def _register(self, call: Call) -> HttpAnswer:
        self._store(call, rvps.parse_message(call.body), replacing=True)
        return HttpAnswer()

    def _query(self, call: Call) -> HttpAnswer:
        return json_answer(self.references.query(call.parameters["id"]))

    def _list(self, _: Call) -> HttpAnswer:
        now = time.time()
        return items_answer([{**value.to_json(), "state": value.state(now)} for value in self.references.list()])

    def _add(self, call: Call) -> HttpAnswer:
        body = canonical.parse_object(call.body, "the reference values")
        items = body.get("values")
        if not isinstance(items, list):
            raise PeerError("malformed", "the reference values have no list 'values'")
        added = [_unsigned(reference.ReferenceValue.from_json(item)) for item in items]
        self._store(call, added, replacing=body.get("replace") is True)
        return HttpAnswer()

    def _add_signed(self, call: Call) -> HttpAnswer:
        """The body is a DSSE envelope. Query: `by_signer`, and `expires` (Unix seconds), the earlier end wins."""
        query = call.request.query
        keys = {signer.name: signer.key for signer in self.references.list_signers()}
        added = statement.verify(call.body, keys, by_signer="by_signer" in query)
        expires = take_number(query, "expires", low=0, high=reference.LAST_SECOND)
        if expires is not None:
            added = [replace(value, expires=min(expires, value.expires or reference.LAST_SECOND)) for value in added]
        self._store(call, added)
        return items_answer([value.to_json() for value in added])

    def _store(self, call: Call, values: list[reference.ReferenceValue], *, replacing: bool = False) -> None:
        (self.references.replace if replacing else self.references.add)(values, by=call.actor)
        signers = sorted({str(value.source["signed_by"]) for value in values if "signed_by" in value.source})
        kind = kinds.REFERENCES_REPLACED if replacing else kinds.REFERENCES_ADDED
        self._record(kind, call, [value.name for value in values], **({"signed_by": signers} if signers else {}))

    def _remove(self, call: Call) -> HttpAnswer:
        query = call.request.query
        name = query.get("name")
        if name is None:
            raise PeerError("malformed", "the query has no name")
        try:
            value = json.loads(query["value"]) if "value" in query else None
        except (ValueError, RecursionError) as error:
            raise PeerError("malformed", "the query's value is not JSON") from error
        self.references.remove(name, value)
        self._record(kinds.REFERENCES_REMOVED, call, [name])
        return HttpAnswer()

    def _retire(self, call: Call) -> HttpAnswer:
        body = canonical.parse_object(call.body, "the retirement")
        name, reason = (canonical.take_text(body, member, "the retirement") for member in ("name", "reason"))
        count = self.references.retire(name, body.get("value"), by=call.actor, reason=reason)
        self._record(kinds.REFERENCES_RETIRED, call, [name], reason=reason)
        return json_answer({"count": count})

    def _restore(self, call: Call) -> HttpAnswer:
        body = canonical.parse_object(call.body, "the request")
        name = canonical.take_text(body, "name", "the request")
        count = self.references.restore(name, body.get("value"))
        self._record(kinds.REFERENCES_RESTORED, call, [name])
        return json_answer({"count": count})

    def _list_signers(self, _: Call) -> HttpAnswer:
        return items_answer([signer.to_json() for signer in self.references.list_signers()])

    def _add_signer(self, call: Call) -> HttpAnswer:
        body = canonical.parse_object(call.body, "the builder's key")
        name, pem = (canonical.take_text(body, member, "the builder's key") for member in ("name", "pem"))
        if _SIGNER_NAME.match(name) is None:
            raise PeerError("malformed", "a builder's key is named with 1 to 64 letters, digits, . _ -")
        key = PublicKey.from_pem(pem.encode("utf-8", "replace"))
        self.references.add_signer(name, key, by=call.actor)
        self.trail.change(kinds.REFERENCE_SIGNER_ADDED, call.administrator, {"name": name, "key_id": key.key_id})
        return json_answer({"name": name, "key_id": key.key_id})

    def _remove_signer(self, call: Call) -> HttpAnswer:
        self.references.remove_signer(call.parameters["name"])
        self.trail.change(kinds.REFERENCE_SIGNER_REMOVED, call.administrator, {"name": call.parameters["name"]})
        return HttpAnswer()

    def _record(self, kind: str, call: Call, names: list[str], **more: object) -> None:
        digest = hashlib.sha256(call.body or json.dumps(dict(call.request.query), sort_keys=True).encode()).hexdigest()
        members = {"names": sorted(set(names))[:_NAMES], "count": len(names), "request": digest, **more}
        self.trail.change(kind, call.administrator, members)


def _unsigned(value: reference.ReferenceValue) -> reference.ReferenceValue:
    """Without what only a verified statement may say of a value's origin."""
    source = {name: each for name, each in value.source.items() if name not in ("signed_by", "key_id", "provenance")}
    return replace(value, source=source)
