"""The attester's side of RCAR 0.4.0: one handshake, then resources over the session it opened.

POST auth     Request      -> nonce, cookie
POST attest   Attestation  -> the cookie's session is attested
GET  resource              -> JWE for the key that the attestation bound

A KBS is often several processes behind one address, of which one may end at any moment. A request that got no answer is
sent again: each may be, since a challenge is answered once, and an attested session answers with its token again.
"""

from __future__ import annotations

import itertools
import threading
import time

from enclave_cc.crypto import jwe
from enclave_cc.crypto.jwk import TeeKey
from enclave_cc.enclave.attest import evidence
from enclave_cc.enclave.tee.platform import Platform
from enclave_cc.errors import TABLE, EnclaveCcError, EnvironmentFault, PeerError
from enclave_cc.record import record
from enclave_cc.transport.https import HttpsClient, Response
from enclave_cc.wire.rcar import messages
from enclave_cc.wire.rcar.uri import ResourceUri

USER_AGENT = "enclave-cc-agent"
# Seconds before each further attempt at a request that nobody answered: a balancer has by then chosen another process, or
# the one that there is has started anew.
_PAUSES = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 1.6, 1.6)
_LATER = (429, 503)  # not now: too many ask, or it is about to end, or has lost its database

# Codes that a KBS of ours sends; of another's we take none at its word, since they end up in exit codes.
_PUBLIC_CODES = frozenset(
    (
        "measurement-unknown",
        "debug-enclave",
        "untrusted-root",
        "tcb-refused",
        "collateral-refused",
        "quote-refused",
        "key-missing",
        "kbs-denied",
        "kbs-protocol",
        "rate-limited",
    )
)


@record
class _Session:
    """An attested session: its cookie, and the key that answers are encrypted to."""

    cookie: str
    key: TeeKey


class KbsClient:
    """Resources of the data owner, from one pinned KBS. Safe for many threads; they share one session.

    The handshake happens with the first `get`, and again when the KBS no longer knows the session. `deadline` bounds
    one `get` as a whole, handshake included, in seconds.
    """

    def __init__(self, url: str, certificate_pem: str, platform: Platform, init_data: bytes | None, deadline: float) -> None:
        self._http = HttpsClient(url, certificate_pem=certificate_pem, deadline=deadline)
        self._platform = platform
        self._init_data = None if init_data is None else init_data.decode()
        self._deadline = deadline
        self._lock = threading.Lock()
        self._session: _Session | None = None
        self._refused_ahead: PeerError | None = None

    def attest(self) -> None:
        """The handshake ahead of the first `get`, if there is no session yet. Raises what `get` raises.

        A refusal by the KBS is kept for the next `get`, which raises it instead of asking once more: one refused start
        is one denial in the owner's log.
        """
        self._attested(None, time.monotonic() + self._deadline, ahead=True)

    def get(self, uri: str) -> bytes:
        """The resource at a `kbs://` URI.

        Raises `PeerError`: "malformed" for the URI; "key-missing" when there is no such resource; "kbs-denied",
        "measurement-unknown", "debug-enclave", "untrusted-root", "tcb-refused", "collateral-refused", "quote-refused"
        when the owner's KBS refuses, with the id under which the owner finds why; "kbs-identity", "kbs-protocol",
        "jwe-broken". `EnvironmentFault`: "kbs-unreachable", "deadline".
        """
        path = f"{messages.PREFIX}/{ResourceUri.parse(uri).request_path}"
        end = time.monotonic() + self._deadline
        session = self._attested(None, end)
        response = self._get(path, session, end)
        if response.status == 401:  # the session ended, or the KBS was started anew: attest once more
            session = self._attested(session, end)
            response = self._get(path, session, end)
        if response.status != 200:
            raise self._refusal(response, f"the KBS does not release {uri}", "kbs-denied")
        try:
            return jwe.decrypt(response.body, session.key).reveal()
        except PeerError as error:
            raise _as_protocol(error) from error

    def close(self) -> None:
        """Closes idle connections and forgets the session."""
        with self._lock:
            self._session = self._refused_ahead = None
        self._http.close()

    def _get(self, path: str, session: _Session, end: float) -> Response:
        return self._request("GET", path, None, session.cookie, end)[0]

    def _attested(self, stale: _Session | None, end: float, *, ahead: bool = False) -> _Session:
        """The shared session; a new one if there is none, or if the present one is `stale`."""
        with self._lock:
            refused, self._refused_ahead = self._refused_ahead, None
            if refused is not None:
                raise refused.with_traceback(None)
            if self._session is None or self._session is stale:
                self._session = None
                try:
                    self._session = self._handshake(end)
                except PeerError as error:
                    if ahead:  # under the lock: a `get` may be waiting for this very handshake
                        self._refused_ahead = error
                    raise
            return self._session

    def _handshake(self, end: float) -> _Session:
        key = TeeKey.generate()
        request = messages.Request(evidence.TEE, extra_params={"supported-hash-algorithms": list(messages.HASH_ALGORITHMS)})
        answer, _ = self._request("POST", f"{messages.PREFIX}/auth", request.encode(), None, end)
        if answer.status != 200:
            raise self._refusal(answer, "the KBS refuses a session", "kbs-protocol")
        try:
            challenge = messages.Challenge.parse(answer.body)
        except PeerError as error:
            raise _as_protocol(error) from error
        cookie = answer.cookie(messages.COOKIE)
        if cookie is None:
            raise PeerError("kbs-protocol", "the KBS opened a session without a cookie")
        attestation = evidence.make_attestation(self._platform, challenge.nonce, key.public, self._init_data)
        answer, repeated = self._request("POST", f"{messages.PREFIX}/attest", attestation.encode(), cookie, end)
        if answer.status == 401 and repeated:  # what it says is that an attempt before used the challenge up
            return self._handshake(end)
        if answer.status != 200:
            raise self._refusal(answer, "the KBS refuses this enclave's evidence", "quote-refused")
        # The token says what we are, which we know; it is the KBS's to check, at each request, from the session.
        return _Session(answer.cookie(messages.COOKIE) or cookie, key)

    def _request(self, method: str, path: str, body: bytes | None, cookie: str | None, end: float) -> tuple[Response, bool]:
        """The answer, and whether it is to a repetition. Gives up when the pauses or the time are used up."""
        headers = {"User-Agent": USER_AGENT, "Accept": "application/json"}
        if body is not None:
            headers["Content-Type"] = "application/json"
        if cookie is not None:
            headers["Cookie"] = f"{messages.COOKIE}={cookie}"
        for attempt in itertools.count():
            left = end - time.monotonic()
            if left <= 0:
                raise EnvironmentFault("deadline", "the KBS did not answer in time")
            last = attempt == len(_PAUSES) or _PAUSES[attempt] >= left
            try:
                answer = self._http.request(method, path, body, headers, deadline=left)
                if answer.status not in _LATER or last:
                    return answer, attempt > 0
            except EnvironmentFault as error:
                if error.code != "kbs-unreachable" or last:
                    raise
            time.sleep(_PAUSES[attempt])
        raise AssertionError

    @staticmethod
    def _refusal(response: Response, what: str, default: str) -> EnclaveCcError:
        """The error behind an answer that is not 200. Reasons stay with the owner; the id leads there."""
        if response.status >= 500:
            return EnvironmentFault("kbs-unreachable", f"the KBS cannot answer now (status {response.status})")
        try:
            problem = messages.Problem.parse(response.body)
        except PeerError:
            return PeerError("kbs-protocol", f"{what}, with status {response.status} and no error message")
        code = problem.code
        if code not in _PUBLIC_CODES or code not in TABLE:
            code = "key-missing" if response.status == 404 else default
        # Not the detail: another implementation's may hold the owner's reasons, and the host reads this.
        ident = f"id {problem.id}" if problem.id is not None else problem.variant
        return PeerError(code, f"{what}, {ident}")


def _as_protocol(error: PeerError) -> PeerError:
    return PeerError("kbs-protocol", error.what) if error.code == "malformed" else error
