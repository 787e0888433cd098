"""Answers a registry's challenges: basic authentication, or tokens of its token server (distribution spec/auth/token)."""

from __future__ import annotations

import base64
import threading
import time
from collections.abc import Callable
from typing import NoReturn
from urllib.parse import urlencode, urlsplit

from enclave_cc.errors import PeerError, foreign
from enclave_cc.transport import connections
from enclave_cc.wire.oci import auth

_TOKEN_ANSWER_LIMIT = 128 << 10
_MARGIN = 10  # seconds before its end at which a token is no longer used


class Authorizer:
    """The `Authorization` header for one registry. Safe for many threads.

    `credentials` is asked only once a registry demands them: looking them up can cost a KBS round trip. Tokens are
    kept by scope until they end. Nothing is sent in the clear unless the registry itself is configured as insecure.
    """

    def __init__(
        self,
        endpoint: connections.Endpoint,
        pool: connections.ConnectionPool,
        credentials: Callable[[], auth.Credentials | None],
        *,
        deadline: float,
    ) -> None:
        self._endpoint, self._pool, self._credentials, self._deadline = endpoint, pool, credentials, deadline
        self._lock = threading.Lock()
        self._basic: str | None = None
        self._tokens: dict[str, tuple[str, float]] = {}  # scope -> header, monotonic end

    def header(self, scope: str) -> str | None:
        """What is known to work for `scope` by now; None before the first challenge."""
        with self._lock:
            if self._basic is not None:
                return self._basic
            header, end = self._tokens.get(scope, (None, 0.0))
            return header if time.monotonic() < end else None

    def answer(self, challenge_header: str, scope: str, used: str | None) -> str:
        """The header that answers a 401. `used` is the header that was refused, if one was sent.

        Raises `PeerError`: "registry-denied" when there is nothing (new) to answer with, "malformed" or
        "registry-failed" when registry or token server speak nonsense; `EnvironmentFault` when it cannot be reached.
        """
        known = self.header(scope)
        if known is not None and known != used:
            return known  # another thread has just fetched it
        challenges = {challenge.scheme: challenge for challenge in auth.parse_challenges(challenge_header)}
        if "bearer" in challenges:
            if used is not None and used.startswith("Bearer ") and known is not None:
                self._deny("it refuses the token that its own token server gave")
            return self._fetch_token(challenges["bearer"], scope)
        if "basic" not in challenges:
            raise PeerError(
                "registry-failed", f"{self._endpoint} wants {foreign(', '.join(challenges)) or 'nothing'}, not basic or bearer"
            )
        credentials = self._credentials()
        if credentials is None:
            self._deny("it wants a user name and password, and there are none for it")
        header = _encode_basic(credentials)
        if header == used:
            self._deny("it refuses the user name and password")
        with self._lock:
            self._basic = header
        return header

    def _fetch_token(self, challenge: auth.Challenge, scope: str) -> str:
        realm = urlsplit(challenge.parameters.get("realm", ""))
        try:
            port = realm.port
        except ValueError as error:
            raise PeerError("registry-failed", f"{self._endpoint} names no usable token server") from error
        if realm.scheme not in {"http", "https"} or not realm.hostname or realm.username is not None:
            raise PeerError("registry-failed", f"{self._endpoint} names no usable token server")
        secure = realm.scheme == "https"
        if self._endpoint.secure and not secure:
            raise PeerError("registry-failed", f"{self._endpoint} names a token server without TLS")
        query = {"scope": scope}
        if "service" in challenge.parameters:
            query["service"] = challenge.parameters["service"]
        path = (realm.path or "/") + "?" + (realm.query + "&" if realm.query else "") + urlencode(query)
        credentials = self._credentials()
        headers = {"Accept": "application/json"}
        if credentials is not None:
            headers["Authorization"] = _encode_basic(credentials)
        server = connections.Endpoint(realm.hostname, port or (443 if secure else 80), secure)
        began = time.monotonic()
        with self._pool.request(server, "GET", path, headers, None, timeout=self._deadline) as response:
            data = response.read(_TOKEN_ANSWER_LIMIT)
            if response.status in {401, 403}:
                self._deny("its token server refuses the credential")
            if response.status != 200:
                raise PeerError("registry-failed", f"the token server {server} answered with status {response.status}")
        token = auth.Token.parse(data)
        header = "Bearer " + token.value.reveal().decode()
        with self._lock:
            self._tokens[scope] = (header, began + max(token.lifetime - _MARGIN, 1))
        return header

    def _deny(self, what: str) -> NoReturn:
        raise PeerError("registry-denied", f"{self._endpoint}: {what}")


def _encode_basic(credentials: auth.Credentials) -> str:
    pair = credentials.username.encode() + b":" + credentials.password.reveal()
    return "Basic " + base64.b64encode(pair).decode()
