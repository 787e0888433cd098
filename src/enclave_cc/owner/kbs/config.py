"""`kbs.toml`: what an owner may set, checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from enclave_cc.errors import UsageError
from enclave_cc.owner.audit.log import Settings as AuditSettings
from enclave_cc.owner.kbs.admin_settings import AdminSettings
from enclave_cc.owner.kbs.collateral_settings import CollateralSettings
from enclave_cc.owner.kbs.directory import KbsDirectory, split_listen
from enclave_cc.owner.kbs.limits import Limits
from enclave_cc.owner.kbs.rate_limits import RateLimits
from enclave_cc.owner.kbs.recordings import RecordingSettings
from enclave_cc.owner.kbs.resource_settings import ResourceSettings
from enclave_cc.owner.kbs.settings import Section
from enclave_cc.owner.kbs.trusted_issuers import TrustedIssuerFiles
from enclave_cc.owner.kbs.verifiers import PluginSettings, check_tees
from enclave_cc.owner.storage.settings import DEFAULT_URL, DatabaseSettings
from enclave_cc.record import field, record


@record
class KbsConfig:
    """Seconds and bytes where numbers; see the comments in the file that `kbs init` writes."""

    listen: tuple[str, int]
    limits: Limits = field(default_factory=Limits)
    metrics_listen: tuple[str, int] | None = None
    session_lifetime: int = 300
    token_issuer: str = "enclave-cc KBS"  # noqa: S105 (a name, not a secret)
    token_lifetime: int = 300
    tees: tuple[str, ...] = ("sgx",)
    rsa1_5: bool = False
    trusted_issuers: tuple[TrustedIssuerFiles, ...] = ()
    admin: AdminSettings = field(default_factory=AdminSettings)
    database: DatabaseSettings = field(default_factory=DatabaseSettings)
    audit: AuditSettings = field(default_factory=AuditSettings)
    recording: RecordingSettings = field(default_factory=RecordingSettings)
    collateral: CollateralSettings = field(default_factory=CollateralSettings)
    plugins: Mapping[str, PluginSettings] = field(default_factory=dict)
    resources: ResourceSettings = field(default_factory=ResourceSettings)
    page: bool = True
    page_lifetime: int = 3600

    @classmethod
    def load(cls, directory: KbsDirectory) -> KbsConfig:
        """Raises `UsageError("bad-config")` that names the setting."""
        reader = _Reader(directory.read_toml(directory.configuration), str(directory.configuration))
        trusted, plugins = reader.section("token", "trusted"), reader.section("attestation", "plugins")
        config = cls(
            listen=split_listen(reader.take("server", "listen", str)),
            limits=Limits(
                request_deadline=float(reader.take("server", "request_deadline", int, 30)),
                body_limit=reader.take("server", "body_limit", int, 2 * 1024 * 1024),
                end_deadline=float(reader.take("server", "end_deadline", int, 30)),
                end_delay=float(reader.take("server", "end_delay", int, 0)),
                end_idle=float(reader.take("server", "end_idle", int, 2)),
                rates=RateLimits.read(reader.section("limits")),
                log_requests=reader.take("server", "log_requests", bool, False),
            ),
            metrics_listen=_read_listen(reader.take("metrics", "listen", str, "")),
            session_lifetime=reader.take("session", "lifetime", int, 300),
            token_issuer=reader.take("token", "issuer", str, "enclave-cc KBS"),
            token_lifetime=reader.take("token", "lifetime", int, 300),
            tees=tuple(reader.take("attestation", "tees", list, ["sgx"])),
            rsa1_5=reader.take("attestation", "rsa1_5", bool, False),
            trusted_issuers=tuple(
                TrustedIssuerFiles.read(name, trusted.inner(name, value), directory.path) for name, value in trusted.rest()
            ),
            admin=AdminSettings.read(reader.section("admin"), directory.path),
            resources=ResourceSettings.read(reader.section("resources"), directory.path),
            database=DatabaseSettings(
                url=reader.take("database", "url", str, DEFAULT_URL),
                password_file=reader.take("database", "password_file", str, "") or None,
                pool=reader.take("database", "pool", int, 16),
                connect_timeout=float(reader.take("database", "connect_timeout", int, 5)),
                statement_timeout=float(reader.take("database", "statement_timeout", int, 10)),
                lock_timeout=float(reader.take("database", "lock_timeout", int, 10)),
            ),
            audit=AuditSettings(
                checkpoint_every=reader.take("audit", "checkpoint_every", int, 60),
                deadline=float(reader.take("audit", "deadline", int, 30)),
            ),
            page=reader.take("page", "serve", bool, True),
            page_lifetime=reader.take("page", "lifetime", int, 3600),
            recording=RecordingSettings.read(reader.section("recording")),
            collateral=CollateralSettings.read(reader.section("collateral"), directory.path),
            plugins={name: PluginSettings.read(plugins.inner(name, value)) for name, value in plugins.rest()},
        )
        check_tees(config.tees, config.plugins, reader.section("attestation"))
        limits = config.limits
        numbers = [limits.request_deadline, limits.body_limit, limits.end_deadline, config.session_lifetime, config.token_lifetime]
        database = config.database
        numbers += [database.pool, database.connect_timeout, database.statement_timeout, database.lock_timeout]
        numbers += [config.audit.checkpoint_every, config.audit.deadline, config.page_lifetime]
        for number in numbers:
            if number <= 0:
                raise UsageError("bad-config", f"{directory.configuration}: numbers must be above 0")
        if min(limits.end_delay, limits.end_idle) < 0:
            raise UsageError("bad-config", f"{directory.configuration}: end_delay and end_idle are 0 or more")
        reader.check_unknown()
        return config


def _read_listen(text: str) -> tuple[str, int] | None:
    return split_listen(text) if text else None


_SETTINGS = {
    "server": {"listen", "request_deadline", "body_limit", "end_deadline", "end_delay", "end_idle", "log_requests"},
    "session": {"lifetime"},
    "token": {"issuer", "lifetime", "trusted"},
    "attestation": {"tees", "rsa1_5", "plugins"},
    "page": {"serve", "lifetime"},
    "audit": {"checkpoint_every", "deadline"},
    "metrics": {"listen"},
    "database": {"url", "password_file", "pool", "connect_timeout", "statement_timeout", "lock_timeout"},
}

# Tables that have a reader of their own.
_SECTIONS = {"admin", "collateral", "limits", "recording", "resources"}


class _Reader:
    def __init__(self, document: Mapping[str, Any], path: str) -> None:
        self._document = document
        self._path = path

    def fault(self, table: str, name: str, what: str) -> UsageError:
        return UsageError("bad-config", f"{self._path}: [{table}] {name}: {what}")

    def take(self, table: str, name: str, kind: type, default: Any = None) -> Any:
        section = self._document.get(table, {})
        value = section.get(name, default) if isinstance(section, Mapping) else default
        if value is None or not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise self.fault(table, name, f"a {kind.__name__} is needed")
        return value

    def section(self, *names: str) -> Section:
        """A table that is read, and checked for unknown settings, elsewhere."""
        value: Any = self._document
        for name in names:
            value = value.get(name, {}) if isinstance(value, Mapping) else {}
        return Section(value, name=".".join(names), path=self._path)

    def check_unknown(self) -> None:
        """A mistyped setting must not silently mean its default."""
        for table, section in self._document.items():
            if table in _SECTIONS:
                continue
            if table not in _SETTINGS or not isinstance(section, Mapping):
                raise UsageError("bad-config", f"{self._path}: there is no table [{table}]")
            for name in section:
                if name not in _SETTINGS[table]:
                    raise self.fault(table, name, "there is no such setting")
