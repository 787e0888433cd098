"""The KBS's paths: which method and path do what, for attesters and administrators.

Without aiohttp: a request comes as method, path, query, cookie, bearer token and body; an answer goes back as status,
type and body. Everything here runs in a worker thread.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from email.utils import formatdate
from typing import Any

from enclave_cc.crypto.secret import Secret
from enclave_cc.errors import EnclaveCcError, EnvironmentFault, PeerError, UsageError
from enclave_cc.owner.kbs.admin import AdminGate
from enclave_cc.owner.kbs.broker import Denied, KeyBroker
from enclave_cc.owner.kbs.decisions import Log
from enclave_cc.owner.kbs.policies import PolicyStore
from enclave_cc.owner.kbs.roots import RootStore
from enclave_cc.owner.kbs.sessions import Session
from enclave_cc.owner.policy import defaults
from enclave_cc.owner.policy.release import Request as ReleaseRequest
from enclave_cc.owner.reference import values as reference
from enclave_cc.owner.reference.store import ReferenceStore
from enclave_cc.owner.resources.store import ResourceStore
from enclave_cc.record import field, record
from enclave_cc.wire.rcar import canonical, messages
from enclave_cc.wire.rcar.uri import ResourcePath

JSON, BYTES, XML = "application/json", "application/octet-stream", "text/xml"


@record
class HttpRequest:
    """What the HTTP layer read. `path` is raw: no percent-decoding, no dot removal."""

    method: str
    path: str
    query: Mapping[str, str]
    cookie: str | None
    bearer: str | None
    body: bytes


@record
class HttpAnswer:
    status: int = 200
    body: bytes = b""
    content_type: str = JSON
    headers: Mapping[str, str] = field(default_factory=dict)


class PathUnknown(UsageError):
    """No such path, or not with this method: upstream's `InvalidRequestPath` and `PluginNotFound`."""

    def __init__(self, variant: str, what: str, *, status: int = 404) -> None:
        super().__init__("not-found", what, "See the KBS's API for its paths.")
        self.variant = variant
        self.status = status


@record
class Routes:
    """The service behind HTTP. Safe for many threads."""

    broker: KeyBroker
    gate: AdminGate
    resources: ResourceStore
    references: ReferenceStore
    policies: PolicyStore
    roots: RootStore
    log: Log

    def answer(self, request: HttpRequest) -> HttpAnswer:
        """Any request to its answer; never raises an `EnclaveCcError`."""
        try:
            return self._dispatch(request)
        except EnclaveCcError as error:
            return problem_answer(error, self.log, request.path)

    def _dispatch(self, request: HttpRequest) -> HttpAnswer:
        if request.path == "/healthz" and request.method == "GET":
            return HttpAnswer(content_type="text/plain")
        if request.path == "/.well-known/jwks.json" and request.method == "GET":
            return _json({"keys": [self.broker.tokens.jwk]})
        if not request.path.startswith(messages.PREFIX + "/"):
            raise PathUnknown("InvalidRequestPath", "there is nothing at this path")
        head, *rest = request.path[len(messages.PREFIX) + 1 :].split("/")
        match request.method, head:
            case "POST", "auth" if not rest:
                return self._auth(request)
            case "POST", "attest" if not rest:
                return self._attest(request)
            case "GET", "resource":
                return self._release(request, rest)
            case (("POST" | "DELETE"), "resource"):
                self._authorize(request)
                return self._change_resource(request, _resource_path(rest))
            case (("GET" | "POST"), "resource-policy") if not rest:
                self._authorize(request)
                return self._release_policy(request)
            case "POST", "attestation-policy" if not rest:
                self._authorize(request)
                return self._set_attestation_policy(request)
            case "POST", "reference-value" if not rest:
                self._authorize(request)
                self.references.replace(reference.parse_rvps_message(request.body))
                return HttpAnswer()
            case "GET", "reference-value" if rest:
                self._authorize(request)
                return _json(self.references.query("/".join(rest)))
            case _, "admin":
                self._authorize(request)
                return self._administer(request, rest)
            case _, ("auth" | "attest" | "resource" | "resource-policy" | "attestation-policy" | "reference-value"):
                raise PathUnknown("InvalidRequestPath", "this path does not know this method", status=405 if not rest else 404)
            case _:
                raise PathUnknown("PluginNotFound", "there is no such plugin")

    def _authorize(self, request: HttpRequest) -> None:
        self.gate.authorize(request.bearer, request.path)

    # attesters

    def _auth(self, request: HttpRequest) -> HttpAnswer:
        session = self.broker.auth(request.body)
        return HttpAnswer(body=messages.Challenge(session.nonce).encode(), headers=_cookie(session))

    def _attest(self, request: HttpRequest) -> HttpAnswer:
        if request.cookie is None:
            raise PeerError("unauthenticated", "an attestation needs the session's cookie")
        session = self.broker.attest(request.cookie, request.body)
        return HttpAnswer(body=messages.encode_token_answer(session.token or ""), headers=_cookie(session))

    def _release(self, request: HttpRequest, segments: list[str]) -> HttpAnswer:
        path = _resource_path(segments)
        token = request.bearer
        if request.cookie is not None:
            try:
                token = self.broker.token_of(request.cookie)
            except PeerError:  # a client whose session has gone may still hold its token
                if token is None:
                    raise
        if token is None:
            raise PeerError("unauthenticated", "a resource needs an attested session or a token")
        asked = ReleaseRequest("resource", (path.repository, path.type, path.tag), request.query)
        return HttpAnswer(body=self.broker.release(token, asked))

    # administrators, paths of upstream

    def _change_resource(self, request: HttpRequest, path: ResourcePath) -> HttpAnswer:
        if request.method == "POST":
            version = self.resources.put(path, Secret(request.body))
            self.log.write("resource-set", {"resource": str(path), "version": version, "size": len(request.body)})
        else:
            self.resources.delete(path)
            self.log.write("resource-removed", {"resource": str(path)})
        return HttpAnswer(content_type=XML)  # upstream's odd type, which its clients ignore

    def _release_policy(self, request: HttpRequest) -> HttpAnswer:
        if request.method == "GET":  # upstream lists the ids of its policies here
            return _json([policy_id for policy_id, _ in self.policies.list() if policy_id == defaults.RELEASE_ID])
        body = canonical.parse_object(request.body, "the policy request")
        self._set_policy(defaults.RELEASE_ID, body)
        return HttpAnswer()

    def _set_attestation_policy(self, request: HttpRequest) -> HttpAnswer:
        body = canonical.parse_object(request.body, "the policy request")
        policy_id = canonical.take_text(body, "policy_id", "the policy request")
        if not policy_id.replace("_", "").replace("-", "").isalnum() or not policy_id.isascii() or len(policy_id) > 64:
            raise PeerError("malformed", "a policy id has letters, digits, _ and - only")
        if policy_id == defaults.RELEASE_ID:
            raise PeerError("malformed", "this id belongs to the release policy")
        self._set_policy(policy_id, body)
        return HttpAnswer()

    def _set_policy(self, policy_id: str, body: Mapping[str, Any]) -> None:
        encoded = canonical.take_text(body, "policy", "the policy request")
        try:
            # kbs-client sends no padding; some callers of its API do.
            raw = base64.b64decode(encoded.rstrip("=") + "=" * (-len(encoded.rstrip("=")) % 4), altchars=b"-_", validate=True)
            text = raw.decode()
        except (binascii.Error, ValueError) as error:
            raise PeerError("malformed", "the policy is not base64url of UTF-8 text") from error
        policy = self.policies.set(policy_id, text)
        self.log.write("policy-set", {"policy": policy_id, "version": policy.version, "digest": policy.digest})

    # administrators, paths of ours

    def _administer(self, request: HttpRequest, rest: list[str]) -> HttpAnswer:
        match request.method, rest:
            case "GET", ["resources"]:
                found = self.resources.list(request.query.get("prefix", ""))
                rows = [{"path": str(r.path), "version": r.version, "created": r.created, "size": r.size} for r in found]
                return _items(rows)
            case "GET", ["resources", *path] if path:
                resource = self.resources.get(_resource_path(path))
                self.log.write("resource-read", {"resource": str(resource.path), "version": resource.version})
                return HttpAnswer(body=resource.value.reveal(), content_type=BYTES)
            case "GET", ["policies"]:
                return _items([{"id": policy_id, "version": version} for policy_id, version in self.policies.list()])
            case "GET", ["policies", policy_id]:
                policy = self.policies.get(policy_id)
                return _json({"id": policy.id, "version": policy.version, "digest": policy.digest, "text": policy.text})
            case "GET", ["reference-values"]:
                return _items([value.to_json() for value in self.references.list()])
            case "POST", ["reference-values"]:
                return self._add_reference_values(request)
            case "DELETE", ["reference-values"]:
                return self._remove_reference_values(request)
            case "GET", ["decisions"]:
                return self._list_decisions(request)
            case "GET", ["decisions", decision_id]:
                return _json(self.broker.decisions.find(decision_id).to_json())
            case "GET", ["roots"]:
                return _items([{"name": root.name, "simulated": root.simulated} for root in self.roots.list_roots()])
            case _:
                raise PathUnknown("InvalidRequestPath", "there is nothing at this path")

    def _add_reference_values(self, request: HttpRequest) -> HttpAnswer:
        items = canonical.parse_object(request.body, "the reference values").get("values")
        if not isinstance(items, list):
            raise PeerError("malformed", "the reference values have no list 'values'")
        added = [reference.ReferenceValue.from_json(item) for item in items]
        self.references.add(added)
        self.log.write("reference-values-added", {"names": sorted({value.name for value in added}), "count": len(added)})
        return HttpAnswer()

    def _remove_reference_values(self, request: HttpRequest) -> HttpAnswer:
        name = request.query.get("name")
        if name is None:
            raise PeerError("malformed", "the query has no name")
        try:
            value = json.loads(request.query["value"]) if "value" in request.query else None
        except (ValueError, RecursionError) as error:
            raise PeerError("malformed", "the query's value is not JSON") from error
        self.references.remove(name, value)
        self.log.write("reference-values-removed", {"name": name})
        return HttpAnswer()

    def _list_decisions(self, request: HttpRequest) -> HttpAnswer:
        limit = request.query.get("limit", "100")
        outcome = request.query.get("outcome")
        if not limit.isdecimal() or not 1 <= int(limit[:6]) <= 10_000 or outcome not in (None, "allow", "deny"):
            raise PeerError("malformed", "limit is 1 to 10000, outcome allow or deny")
        return _items([found.to_json() for found in self.broker.decisions.list(outcome=outcome, limit=int(limit))])


def problem_answer(error: EnclaveCcError, log: Log, path: str) -> HttpAnswer:
    """An error as the Error JSON, with the status its reader expects.

    Upstream answers 401 to nearly everything. Its clients take 401 for "attest again" and try three times, 404 for
    "there is no such resource", and anything else for final. So 401 is kept for what attesting again can heal; a
    denial by policy is 403 and a missing resource 404, as upstream's own documentation has it.
    """
    match error:
        case Denied():
            status = {"AttestationError": 401, "ResourceNotFound": 404}.get(error.variant, 403)
            problem = messages.Problem(error.variant, error.what, error.code, error.decision)
        case PathUnknown():
            status, problem = error.status, messages.Problem(error.variant, error.what, error.code)
        case EnvironmentFault():
            # The KBS's own trouble: its administrator reads it in the log, nobody else.
            log.write("fault", {"code": error.code, "what": error.what})
            status, problem = 503, messages.Problem("PluginInternalError", "the KBS cannot answer now", error.code)
        case _:
            status = 401 if error.code == "kbs-protocol" else error.row.http  # upstream's status for a wrong version
            problem = messages.Problem(_VARIANTS.get(error.code, "PluginInternalError"), error.what, error.code)
            if status in (401, 403):
                log.write("refused", {"code": error.code, "what": error.what, "path": path[:256]})
    return HttpAnswer(status, problem.encode())


_VARIANTS = {
    "unauthenticated": "TokenNotFound",
    "forbidden": "AdminAuthAccess",
    "kbs-protocol": "AttestationError",
    "policy-invalid": "ParsePolicyError",
    "malformed": "InvalidRequest",
    "too-large": "PayloadTooLarge",
    "not-found": "ResourceNotFound",
}


def _resource_path(segments: list[str]) -> ResourcePath:
    try:
        return ResourcePath(*segments) if len(segments) == 3 else ResourcePath.parse("/".join(segments))
    except PeerError as error:
        raise PathUnknown("InvalidRequestPath", error.what) from error


def _cookie(session: Session) -> dict[str, str]:
    return {"Set-Cookie": f"{messages.COOKIE}={session.id}; Expires={formatdate(session.expires, usegmt=True)}"}


def _json(value: object) -> HttpAnswer:
    return HttpAnswer(body=json.dumps(value).encode())


def _items(rows: list[dict[str, Any]]) -> HttpAnswer:
    return _json({"items": rows})
