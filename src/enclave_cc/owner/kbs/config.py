"""`kbs.toml`: what an owner may set, checked."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from enclave_cc.errors import UsageError
from enclave_cc.owner.kbs.directory import KbsDirectory, split_listen
from enclave_cc.record import record

KNOWN_TEES = ("sgx", "sample")


@record
class KbsConfig:
    """Seconds and bytes where numbers; see the comments in the file that `kbs init` writes."""

    listen: tuple[str, int]
    request_deadline: float = 30.0
    body_limit: int = 2 * 1024 * 1024
    session_lifetime: int = 300
    token_issuer: str = "enclave-cc KBS"  # noqa: S105 (a name, not a secret)
    token_lifetime: int = 300
    tees: tuple[str, ...] = ("sgx",)
    admin_public_key: str = "admin.pub"
    admin_issuer: str | None = None
    admin_audience: str | None = None
    admin_roles: Mapping[str, tuple[re.Pattern[str], ...]] = ()  # type: ignore[assignment]

    @classmethod
    def load(cls, directory: KbsDirectory) -> KbsConfig:
        """Raises `UsageError("bad-config")` that names the setting."""
        reader = _Reader(directory.read_toml(directory.configuration), str(directory.configuration))
        roles = reader.table("admin", "roles")
        config = cls(
            listen=split_listen(reader.take("server", "listen", str)),
            request_deadline=float(reader.take("server", "request_deadline", int, 30)),
            body_limit=reader.take("server", "body_limit", int, 2 * 1024 * 1024),
            session_lifetime=reader.take("session", "lifetime", int, 300),
            token_issuer=reader.take("token", "issuer", str, "enclave-cc KBS"),
            token_lifetime=reader.take("token", "lifetime", int, 300),
            tees=tuple(reader.take("attestation", "tees", list, ["sgx"])),
            admin_public_key=reader.take("admin", "public_key", str, "admin.pub"),
            admin_issuer=reader.take("admin", "issuer", str, "") or None,
            admin_audience=reader.take("admin", "audience", str, "") or None,
            admin_roles={name: reader.patterns(name, value) for name, value in roles.items()},
        )
        for tee in config.tees:
            if tee not in KNOWN_TEES:
                raise reader.fault("attestation", "tees", f"{tee!r} is not one of {', '.join(KNOWN_TEES)}")
        for number in (config.request_deadline, config.body_limit, config.session_lifetime, config.token_lifetime):
            if number <= 0:
                raise UsageError("bad-config", f"{directory.configuration}: numbers must be above 0")
        reader.check_unknown()
        return config


_SETTINGS = {
    "server": {"listen", "request_deadline", "body_limit"},
    "session": {"lifetime"},
    "token": {"issuer", "lifetime"},
    "attestation": {"tees"},
    "admin": {"public_key", "issuer", "audience", "roles"},
}


class _Reader:
    def __init__(self, document: Mapping[str, Any], path: str) -> None:
        self._document = document
        self._path = path

    def fault(self, table: str, name: str, what: str) -> UsageError:
        return UsageError("bad-config", f"{self._path}: [{table}] {name}: {what}")

    def take(self, table: str, name: str, kind: type, default: Any = None) -> Any:
        section = self._document.get(table, {})
        value = section.get(name, default) if isinstance(section, Mapping) else default
        if value is None or not isinstance(value, kind) or isinstance(value, bool):
            raise self.fault(table, name, f"a {kind.__name__} is needed")
        return value

    def table(self, *names: str) -> Mapping[str, Any]:
        value: Any = self._document
        for name in names:
            value = value.get(name, {}) if isinstance(value, Mapping) else {}
        return value if isinstance(value, Mapping) else {}

    def patterns(self, role: str, value: Any) -> tuple[re.Pattern[str], ...]:
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self.fault("admin.roles", role, "a list of regular expressions is needed")
        try:
            return tuple(re.compile(item) for item in value)
        except re.error as error:
            raise self.fault("admin.roles", role, f"not a regular expression: {error}") from error

    def check_unknown(self) -> None:
        """A mistyped setting must not silently mean its default."""
        for table, section in self._document.items():
            if table not in _SETTINGS or not isinstance(section, Mapping):
                raise UsageError("bad-config", f"{self._path}: there is no table [{table}]")
            for name in section:
                if name not in _SETTINGS[table]:
                    raise self.fault(table, name, "there is no such setting")
