"""HTTP to HashiCorp Vault or OpenBao: one request under one deadline, with a token that is kept alive.

TLS with a pinned CA or certificate; no redirect is followed, as the token would go with it. What Vault itself says in
an error is not passed on: it is outside text, and may quote what was sent.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Mapping
from typing import Any, Protocol
from urllib.parse import quote, urlencode

from enclave_cc.crypto.secret import Secret
from enclave_cc.errors import EnclaveCcError, EnvironmentFault, PeerError, UsageError
from enclave_cc.record import field, record
from enclave_cc.transport.https import Codes, HttpsClient, Response

MAX_ANSWER = 32 * 1024 * 1024  # Vault's own limit of a request
_CODES = Codes(unreachable="store-unreachable", identity="store-denied", protocol="store-failed")
# What may be different a moment later: rate limit, a read behind its write (Vault Enterprise), a change of the leader.
_PASSING = frozenset((412, 429, 472, 473, 500, 502, 503, 504))
MERGE_PATCH = "application/merge-patch+json"


@record
class Answer:
    """Vault's answer to something it did or refused to do. `document` is its JSON object, {} without a body."""

    status: int
    document: Mapping[str, Any] = field(default_factory=dict)

    @property
    def data(self) -> Mapping[str, Any]:
        data: Mapping[str, Any] = take(self.document, "data", dict)
        return data

    def complains_of(self, phrase: str) -> bool:
        errors = self.document.get("errors")
        return isinstance(errors, list) and any(isinstance(each, str) and phrase in each.lower() for each in errors)


class TokenSource(Protocol):
    """See `vault_login.Login`."""

    def token(self, client: VaultClient, end: float) -> Secret: ...

    def replace(self, refused: Secret, client: VaultClient, end: float) -> bool: ...


class VaultClient:
    """Safe for many threads. Every request raises `EnvironmentFault`: "store-unreachable", "store-sealed",
    "store-denied", "store-failed", "deadline"; one that is too large for this server `UsageError("too-large")`."""

    def __init__(
        self, address: str, *, ca_pem: str | None, tokens: TokenSource, namespace: str = "", deadline: float = 10.0
    ) -> None:
        """`deadline`: seconds for one request with all its repetitions. Without `ca_pem` the system's CAs decide."""
        self._http = HttpsClient(address, certificate_pem=ca_pem, deadline=deadline, codes=_CODES)
        self._tokens = tokens
        self._namespace = namespace
        self._deadline = deadline

    def request(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        query: Mapping[str, str | int] | None = None,
        content_type: str = "application/json",
    ) -> Answer:
        """A request under the token; its answer with status 200, 204, 400, 404 or 405.

        It is sent again while the trouble may pass and the deadline has not: what it does must be the same twice."""
        end = time.monotonic() + self._deadline
        token = self._tokens.token(self, end)
        answer = self.send(method, path, body, end=end, token=token, query=query, content_type=content_type)
        if answer.status == 403 and self._tokens.replace(token, self, end):
            token = self._tokens.token(self, end)
            answer = self.send(method, path, body, end=end, token=token, query=query, content_type=content_type)
        if answer.status == 403:
            raise EnvironmentFault("store-denied", f"Vault does not let this KBS {method} below {path.split('/', 1)[0]}/")
        if answer.status == 404 and answer.complains_of("route"):
            raise EnvironmentFault("store-failed", f"Vault has no mount {path.split('/', 1)[0]}/", "Check mount in kbs.toml.")
        return answer

    def send(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        end: float,
        token: Secret | None = None,
        query: Mapping[str, str | int] | None = None,
        content_type: str = "application/json",
    ) -> Answer:
        """As `request`, under the given token or none, until `end` (monotonic seconds); 403 is an answer too."""
        headers = {"X-Vault-Request": "true", "Content-Type": content_type}
        if token is not None:
            headers["X-Vault-Token"] = token.reveal().decode("ascii")
        if self._namespace:
            headers["X-Vault-Namespace"] = self._namespace
        target = f"/v1/{quote(path, safe='/')}" + (f"?{urlencode(query)}" if query else "")
        data = None if body is None else json.dumps(body, separators=(",", ":")).encode()
        wait = 0.05
        while True:
            left = end - time.monotonic()
            if left <= 0:
                raise EnvironmentFault("deadline", f"{self._http.origin} did not answer in time")
            try:
                response = self._http.request(method, target, data, headers, deadline=left, max_body=MAX_ANSWER)
                answer = _read(response, self._http.origin)
            except PeerError as error:  # not the caller's peer: the KBS's own trouble
                code = error.code if error.code.startswith("store-") else "store-failed"
                raise EnvironmentFault(code, error.what) from error
            except EnvironmentFault as error:
                if error.code != "store-unreachable" or time.monotonic() + wait >= end:
                    raise
            else:
                if answer.status not in _PASSING or time.monotonic() + wait >= end:
                    return self._judge(answer)
            time.sleep(wait * (0.5 + random.random()))  # noqa: S311 (spreads the instances, no secret)
            wait = min(wait * 2, 1.0)

    def close(self) -> None:
        self._http.close()

    def _judge(self, answer: Answer) -> Answer:
        if answer.status in (200, 204, 400, 403, 404, 405):
            return answer
        raise _explain(answer, self._http.origin)


def _read(response: Response, origin: str) -> Answer:
    """Raises `EnvironmentFault`: "store-sealed", which waiting does not heal, "store-failed" for what is not Vault; and
    `UsageError("too-large")`."""
    if response.status == 204 or not response.body:
        return Answer(response.status)
    try:
        document = json.loads(response.body)
    except (ValueError, RecursionError) as error:
        if response.status != 200:  # a proxy's page in front of Vault
            return Answer(response.status)
        raise EnvironmentFault("store-failed", f"{origin} does not answer as Vault does") from error
    if not isinstance(document, dict):
        raise EnvironmentFault("store-failed", f"{origin} does not answer as Vault does")
    answer = Answer(response.status, document)
    if response.status == 503 and answer.complains_of("sealed"):
        raise _explain(answer, origin)
    if response.status == 413 or (response.status in (400, 500) and answer.complains_of("too large")):
        raise UsageError("too-large", f"{origin} does not store as much as this", "Raise max_entry_size in Vault's storage stanza.")
    return answer


def _explain(answer: Answer, origin: str) -> EnclaveCcError:
    if answer.status == 503 and answer.complains_of("sealed"):
        return EnvironmentFault("store-sealed", f"{origin} is sealed")
    if answer.status in (301, 302, 303, 307, 308):
        return EnvironmentFault(
            "store-unreachable",
            f"{origin} is a standby that does not forward requests, or a proxy: it answers with a redirect",
            "Name the active node, or one that forwards, as the address.",
        )
    if answer.status in _PASSING:
        return EnvironmentFault("store-unreachable", f"{origin} cannot serve now (status {answer.status})")
    return EnvironmentFault("store-failed", f"{origin} answered with status {answer.status}")


def take(document: Mapping[str, Any], name: str, kind: type) -> Any:
    """A member of what Vault sent. Raises `EnvironmentFault("store-failed")` when it is absent or of another type."""
    value = document.get(name)
    if not isinstance(value, kind) or isinstance(value, bool) != (kind is bool):
        raise EnvironmentFault("store-failed", f"Vault's answer has no {name}")
    return value
