"""Who administers, as `[admin]` of kbs.toml says it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from enclave_cc.crypto.jws import VerifyKey
from enclave_cc.errors import UsageError
from enclave_cc.owner.kbs.admin import ACTIONS, AdminGate, IdentityProvider, Role
from enclave_cc.owner.kbs.settings import Section
from enclave_cc.owner.kbs.trusted_issuers import read_file, read_key_set
from enclave_cc.record import field, record

_SEGMENT = r"[A-Za-z0-9_-][A-Za-z0-9_.-]*"
_PREFIX = re.compile(rf"(?:{_SEGMENT}/){{1,2}}\Z|(?:{_SEGMENT}/){{2}}{_SEGMENT}\Z")
OWNER = "owner"  # the identity provider that `[admin] public_key` is


@record
class ProviderFiles:
    """Where an identity provider's key lies: PEM or a JWK set."""

    name: str
    public_key: Path | None
    jwks: Path | None
    issuer: str | None
    audience: str | None
    roles: frozenset[str] | None = None

    def load(self) -> IdentityProvider:
        """Raises `UsageError("bad-config")`."""
        keys: dict[str, VerifyKey] = {}
        if self.public_key is not None:
            try:
                key = VerifyKey.from_pem(read_file(self.public_key))
            except UsageError as error:
                raise UsageError("bad-config", f"{self.public_key}: {error.what}") from error
            keys[key.kid] = key
        if self.jwks is not None:
            keys |= read_key_set(read_file(self.jwks), str(self.jwks))
        return IdentityProvider(self.name, keys, self.issuer, self.audience, self.roles)


@record
class AdminSettings:
    """`client_ca`: PEM of the authorities of client certificates, which admin paths then ask for."""

    providers: tuple[ProviderFiles, ...] = ()
    roles: Mapping[str, Role] = field(default_factory=dict)
    default_role: str | None = None
    client_ca: Path | None = None

    @classmethod
    def read(cls, section: Section, directory: Path) -> AdminSettings:
        """Raises `UsageError("bad-config")`."""
        providers = []
        roles = _read_roles(section, section.raw("roles"))
        issuer, audience = section.text("issuer"), section.text("audience")
        public_key = section.text("public_key", "admin.pub")
        if public_key is not None:
            providers.append(ProviderFiles(OWNER, directory / public_key, None, issuer, audience))
        for name, inner in section.sections("identity_providers").items():
            providers.append(_read_provider(name, inner, directory, roles))
        default_role, client_ca = section.text("default_role"), section.text("client_ca")
        if default_role is not None and default_role not in roles:
            raise section.fault("default_role", "there is no such role")
        section.finish()
        return cls(tuple(providers), roles, default_role, None if client_ca is None else directory / client_ca)

    def make_gate(self) -> AdminGate:
        """Reads the keys. Raises `UsageError("bad-config")`."""
        return AdminGate(
            [provider.load() for provider in self.providers],
            self.roles,
            default_role=self.default_role,
            client_certificates=self.client_ca is not None,
        )


def _read_provider(name: str, section: Section, directory: Path, known: Mapping[str, Role]) -> ProviderFiles:
    public_key, jwks = section.text("public_key"), section.text("jwks")
    if (public_key is None) == (jwks is None):
        raise section.fault("public_key", "either public_key (PEM) or jwks (a key set) is needed")
    roles = section.texts("roles")
    for role in roles:
        if role not in known:
            raise section.fault("roles", f"there is no role {role!r} in [admin.roles]")
    made = ProviderFiles(
        name,
        None if public_key is None else directory / public_key,
        None if jwks is None else directory / jwks,
        section.text("issuer"),
        section.text("audience"),
        frozenset(roles) or None,
    )
    section.finish()
    return made


def _read_roles(section: Section, value: object) -> dict[str, Role]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise section.fault("roles", "a table is needed")
    return {str(name): _read_role(section, str(name), item) for name, item in value.items()}


def _read_role(section: Section, name: str, value: object) -> Role:
    if isinstance(value, list):  # the short form: expressions alone
        value = {"paths": value}
    inner = section.inner(f"roles.{name}", value)
    actions = inner.texts("actions", ("list", "read"))
    for action in actions:
        if action not in ACTIONS:
            raise inner.fault("actions", f"{action!r} is not one of {', '.join(ACTIONS)}")
    resources = inner.texts("resources")
    for prefix in resources:
        # `team-a` would also be `team-ab`, and `team-a/key` also `team-a/keys/one`.
        if _PREFIX.match(prefix) is None:
            raise inner.fault("resources", f"{prefix!r} is not REPOSITORY/, REPOSITORY/TYPE/ or REPOSITORY/TYPE/TAG")
    try:
        paths = tuple(re.compile(item) for item in inner.texts("paths"))
    except re.error as error:
        raise inner.fault("paths", f"not a regular expression: {error}") from error
    inner.finish()
    return Role(paths, resources, frozenset(actions) if resources else frozenset())
