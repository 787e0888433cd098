"""The paths of attesters: challenge, attestation, release."""

from __future__ import annotations

from email.utils import formatdate

from enclave_cc.errors import EnclaveCcError, PeerError
from enclave_cc.owner.kbs.broker import KeyBroker
from enclave_cc.owner.kbs.http import HttpAnswer, PathUnknown, json_answer
from enclave_cc.owner.kbs.problems import Denied
from enclave_cc.owner.kbs.routing import PUBLIC, Call, Route
from enclave_cc.owner.kbs.sessions import Session
from enclave_cc.owner.policy.release import Request as ReleaseRequest
from enclave_cc.record import record
from enclave_cc.wire.rcar import messages
from enclave_cc.wire.rcar.uri import ResourcePath

RESOURCE = f"{messages.PREFIX}/resource/{{repository}}/{{type}}/{{tag}}"


@record
class AttesterPaths:
    """RCAR's server side, as paths."""

    broker: KeyBroker

    def routes(self) -> tuple[Route, ...]:
        return (
            Route("POST", f"{messages.PREFIX}/auth", self._auth, PUBLIC),
            Route("POST", f"{messages.PREFIX}/attest", self._attest, PUBLIC),
            Route("GET", RESOURCE, self._release, PUBLIC),
            Route("GET", "/.well-known/jwks.json", self._publish_keys, PUBLIC),
        )

    def _auth(self, call: Call) -> HttpAnswer:
        metrics = self.broker.metrics
        metrics.auth_requests.add()
        try:
            session = self.broker.auth(call.body)
        except EnclaveCcError:
            metrics.auth_errors.add()
            raise
        metrics.auth_successes.add()
        return HttpAnswer(body=messages.Challenge(session.nonce).encode(), headers=_cookie(session))

    def _attest(self, call: Call) -> HttpAnswer:
        if call.request.cookie is None:
            raise PeerError("unauthenticated", "an attestation needs the session's cookie")
        metrics = self.broker.metrics
        metrics.attestations.add()
        try:
            session = self.broker.attest(call.request.cookie, call.body)
        except Denied:  # counted with its kind of evidence
            raise
        except EnclaveCcError:
            metrics.attestation_errors.add()
            raise
        return HttpAnswer(body=messages.encode_token_answer(session.token or ""), headers=_cookie(session))

    def _release(self, call: Call) -> HttpAnswer:
        path = resource_path(call)
        token = call.request.bearer
        if call.request.cookie is not None:
            try:
                token = self.broker.token_of(call.request.cookie)
            except PeerError:  # a client whose session has gone may still hold its token
                if token is None:
                    raise
        if token is None:
            raise PeerError("unauthenticated", "a resource needs an attested session or a token")
        asked = ReleaseRequest("resource", (path.repository, path.type, path.tag), call.request.query)
        return HttpAnswer(body=self.broker.release(token, asked))

    def _publish_keys(self, _: Call) -> HttpAnswer:
        return json_answer({"keys": self.broker.tokens.published_keys()})


def resource_path(call: Call) -> ResourcePath:
    """The resource that a path names. Raises `PathUnknown` for segments that no resource can have."""
    try:
        return ResourcePath(*(call.parameters[name] for name in ("repository", "type", "tag")))
    except PeerError as error:
        raise PathUnknown("InvalidRequestPath", error.what) from error


def _cookie(session: Session) -> dict[str, str]:
    return {"Set-Cookie": f"{messages.COOKIE}={session.id}; Expires={formatdate(session.expires, usegmt=True)}"}
