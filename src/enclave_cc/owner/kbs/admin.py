"""Who may administer: a signed token with a role, and the paths that the role covers."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping

from enclave_cc.crypto.jws import SigningKey, VerifyKey
from enclave_cc.errors import PeerError, foreign
from enclave_cc.record import record

TOKEN_LIFETIME = 300  # seconds
AUDIENCE = "KBS"
ISSUER = "enclave-cc"


@record
class Administrator:
    """Somebody whose token was verified and whose role covers the path. Only `authorize` makes one."""

    subject: str
    role: str


class AdminGate:
    """Verifies admin tokens as Trustee's `bearer_jwt` and `regex_acl` do."""

    def __init__(
        self,
        key: VerifyKey,
        roles: Mapping[str, tuple[re.Pattern[str], ...]],
        *,
        issuer: str | None = None,
        audience: str | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._key = key
        self._roles = roles
        self._issuer = issuer
        self._audience = audience
        self._now = now

    def authorize(self, token: str | None, path: str) -> Administrator:
        """The administrator behind `token` for the request path `path`.

        1. There is a token, signed by the configured key.
        2. It has `exp` and has not expired; if it has `nbf`, that is past.
        3. Issuer and audience are as configured, where they are.
        4. Its `role` is known, and one of the role's expressions matches the whole path.

        Raises `PeerError`: "unauthenticated" (1-3) or "forbidden" (4).
        """
        # 1
        if token is None:
            raise PeerError("unauthenticated", "this path needs an admin token", "Send it as `Authorization: Bearer`.")
        _, claims = self._key.verify(token)
        # 2
        expires, start = (_number(claims.get(name, default)) for name, default in (("exp", None), ("nbf", 0)))
        if expires is None or expires <= self._now():
            raise PeerError("unauthenticated", "the admin token has expired, or names no end")
        if start is None or start > self._now() + 60:
            raise PeerError("unauthenticated", "the admin token is not valid yet")
        # 3
        if self._issuer is not None and claims.get("iss") != self._issuer:
            raise PeerError("unauthenticated", "the admin token is of another issuer")
        audience = claims.get("aud")
        if self._audience is not None and self._audience not in (audience if isinstance(audience, list) else [audience]):
            raise PeerError("unauthenticated", "the admin token is for another audience")
        # 4
        role = claims.get("role")
        if not isinstance(role, str) or not any(pattern.fullmatch(path) for pattern in self._roles.get(role, ())):
            raise PeerError("forbidden", "the role of this token does not cover this path")
        return Administrator(foreign(claims.get("sub", "")), role)


def issue_token(key: SigningKey, role: str, now: float) -> str:
    """A short-lived admin token."""
    claims = {"iss": ISSUER, "sub": role, "aud": [AUDIENCE], "role": role, "iat": int(now), "exp": int(now) + TOKEN_LIFETIME}
    return key.sign(claims)


def _number(value: object) -> float | None:
    return float(value) if (type(value) is int and abs(value) < 1 << 53) or type(value) is float else None
