"""Who may administer: a signed token with a role, and what the role covers.

Tokens are JWT as Trustee's `kbs-client` sends them: EdDSA, ES256 or RS256, with `exp` and a text claim `role`.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence

from enclave_cc.crypto import jws
from enclave_cc.crypto.jws import SigningKey, VerifyKey
from enclave_cc.errors import PeerError, foreign
from enclave_cc.record import field, record
from enclave_cc.wire.rcar import messages

TOKEN_LIFETIME = 300  # seconds
AUDIENCE = "KBS"
ISSUER = "enclave-cc"
LEEWAY = 60

# What a role scoped to resources may do with them, by action.
ACTIONS = ("list", "read", "write", "audit")
_LISTING = f"{messages.PREFIX}/admin/resources"
_AUDIT = f"{messages.PREFIX}/admin/audit/"
_METHODS = {"GET": ("read",), "POST": ("write",), "PUT": ("write",), "DELETE": ("write",)}


@record
class Role:
    """What a role covers: whole request paths by expression, or resources: those below what ends in a slash, and the very
    one that any other entry names."""

    paths: tuple[re.Pattern[str], ...] = ()
    resources: tuple[str, ...] = ()
    actions: frozenset[str] = frozenset()

    def covers(self, method: str, path: str) -> bool:
        if any(pattern.fullmatch(path) for pattern in self.paths):
            return True
        if path == _LISTING:  # whose rows `covers_resource` then chooses
            return method == "GET" and bool(self.resources) and not self.actions.isdisjoint(("list", "read"))
        if path.startswith(_AUDIT):
            return method == "GET" and "audit" in self.actions and self._covers_audit(path.removeprefix(_AUDIT))
        for start in (f"{messages.PREFIX}/resource/", f"{_LISTING}/"):
            if path.startswith(start):
                # Behind a resource's three segments come its history and tags.
                resource = "/".join(path.removeprefix(start).split("/")[:3])
                return self._names(resource) and not self.actions.isdisjoint(_METHODS.get(method, ()))
        return False

    def _covers_audit(self, path: str) -> bool:
        """What concerns the role's own resources, and what it takes to verify that: no entry of others."""
        if path in ("checkpoint", "consistency"):
            return bool(self.resources)
        asked = path.removeprefix("resources/")
        return asked != path and any(
            f"{asked}/".startswith(prefix) if prefix.endswith("/") else asked == prefix for prefix in self.resources
        )

    def covers_resource(self, path: str) -> bool:
        """Whether `path` (REPOSITORY/TYPE/TAG) may show in a listing for this role."""
        return self._names(path) or self.covers_all_resources

    def _names(self, resource: str) -> bool:
        return any(resource.startswith(each) if each.endswith("/") else resource == each for each in self.resources)

    @property
    def covers_all_resources(self) -> bool:
        """A role that is given the listing by its path is given all of it."""
        return any(pattern.fullmatch(_LISTING) for pattern in self.paths)


@record
class IdentityProvider:
    """Somebody who says who administrators are. `keys` by `kid`; `issuer` and `audience` are checked where they are set;
    `roles`: those that it may give, None for all."""

    name: str
    keys: Mapping[str, VerifyKey]
    issuer: str | None = None
    audience: str | None = None
    roles: frozenset[str] | None = None

    def may_give(self, role: str) -> bool:
        return self.roles is None or role in self.roles


@record
class Administrator:
    """Somebody whose token was verified and whose role covers the path. Only `authorize` makes one. `key`: the id of the
    key that signed it."""

    subject: str
    role: str
    provider: str = ""
    scope: Role = field(default_factory=Role)
    key: str = ""


class AdminGate:
    """Verifies admin tokens as Trustee's `bearer_jwt` and `regex_acl` do. Safe for many threads."""

    def __init__(
        self,
        providers: Sequence[IdentityProvider],
        roles: Mapping[str, Role],
        *,
        default_role: str | None = None,
        client_certificates: bool = False,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._providers = tuple(providers)
        self._roles = roles
        self._default_role = default_role
        self._client_certificates = client_certificates
        self._now = now

    def authorize(self, token: str | None, method: str, path: str, *, certificate: bool = False) -> Administrator:
        """The administrator behind `token`, for a request. `certificate`: TLS has verified one of the client.

        1. `identify` knows who it is.
        2. The role covers the path.

        Raises `PeerError`: "unauthenticated" or "forbidden" (1), "forbidden" (2).
        """
        # 1
        who = self.identify(token, certificate=certificate)
        # 2
        if not who.scope.covers(method, path):
            raise PeerError("forbidden", "the role of this token does not cover this path")
        return who

    def identify(self, token: str | None, *, certificate: bool = False) -> Administrator:
        """The administrator behind `token`, whatever the role covers.

        1. There is a client certificate, where the configuration wants one; and a token.
        2. An identity provider's key signed the token, with that key's algorithm.
        3. Issuer and audience are that provider's, where it has them.
        4. It has `exp` and has not expired; if it has `nbf`, that is past.
        5. Its `role` is known, and one that the provider may give.

        Raises `PeerError`: "unauthenticated" (1-4) or "forbidden" (5).
        """
        # 1
        self._check_certificate(certificate)
        if token is None:
            raise PeerError("unauthenticated", "this path needs an admin token", "Send it as `Authorization: Bearer`.")
        # 2, 3
        provider, key, claims = self._verify(token)
        # 4
        expires, start = (_number(claims.get(name, default)) for name, default in (("exp", None), ("nbf", 0)))
        if expires is None or expires <= self._now():
            raise PeerError("unauthenticated", "the admin token has expired, or names no end")
        if start is None or start > self._now() + LEEWAY:
            raise PeerError("unauthenticated", "the admin token is not valid yet")
        # 5
        name = claims.get("role", self._default_role)
        role = self._roles.get(name) if isinstance(name, str) and provider.may_give(name) else None
        if role is None:
            raise PeerError("forbidden", "the role of this token does not cover this path")
        return Administrator(foreign(claims.get("sub", "")), str(name), provider.name, role, key.kid)

    def resume(self, subject: str, role: str, provider: str, key: str, *, certificate: bool = False) -> Administrator:
        """Somebody whom `identify` knew before, with what the role covers now.

        Raises `PeerError`: "unauthenticated" without the certificate that is wanted, or when role, provider or the
        provider's key are gone."""
        self._check_certificate(certificate)
        scope = self._roles.get(role)
        named = [each for each in self._providers if each.name == provider and each.may_give(role)]
        keys = {known.kid for each in named for known in each.keys.values()}
        if scope is None or key not in keys:
            raise PeerError("unauthenticated", "this session's role, or who vouched for it, is not known any more")
        return Administrator(subject, role, provider, scope, key)

    def _check_certificate(self, certificate: bool) -> None:
        if self._client_certificates and not certificate:
            raise PeerError("unauthenticated", "this path needs a client certificate", "Present one of the configured authority.")

    def _verify(self, token: str) -> tuple[IdentityProvider, VerifyKey, Mapping[str, object]]:
        """The first provider that stands behind the token, its key, the claims: a key may serve two, for two audiences."""
        kid = jws.read_header(token).get("kid")
        refused = PeerError("unauthenticated", "the admin token is signed by no identity provider")
        for provider in self._providers:
            named = provider.keys.get(kid) if isinstance(kid, str) else None
            for key in (named,) if named is not None else provider.keys.values():
                try:
                    _, claims = key.verify(token)
                except PeerError as error:
                    # The reason of the only key there is helps; of several, none is the reason.
                    refused = error if len(self._providers) == len(provider.keys) == 1 else refused
                    continue
                if provider.issuer is not None and claims.get("iss") != provider.issuer:
                    refused = PeerError("unauthenticated", "the admin token is of another issuer")
                elif provider.audience is not None and not _names(claims.get("aud"), provider.audience):
                    refused = PeerError("unauthenticated", "the admin token is for another audience")
                else:
                    return provider, key, claims
        raise refused


def issue_token(key: SigningKey, role: str, now: float) -> str:
    """A short-lived admin token."""
    claims = {"iss": ISSUER, "sub": role, "aud": [AUDIENCE], "role": role, "iat": int(now), "exp": int(now) + TOKEN_LIFETIME}
    return key.sign(claims)


def _names(audience: object, wanted: str) -> bool:
    return wanted in (audience if isinstance(audience, list) else [audience])


def _number(value: object) -> float | None:
    return float(value) if (type(value) is int and abs(value) < 1 << 53) or type(value) is float else None
