"""Which database a KBS uses: the `[database]` table of kbs.toml."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from enclave_cc.errors import EnvironmentFault, UsageError
from enclave_cc.owner.storage.database import Database
from enclave_cc.owner.storage.sqlite import SqliteDatabase
from enclave_cc.record import record

DEFAULT_URL = "sqlite:kbs.db"
PASSWORD_VARIABLE = "ENCLAVE_CC_DATABASE_PASSWORD"  # noqa: S105 (a name, not a secret)


@record
class DatabaseSettings:
    """`url`: "sqlite:PATH" or "postgresql://USER@HOST/NAME"; timeouts in seconds; paths relative to the KBS directory."""

    url: str = DEFAULT_URL
    password_file: str | None = None
    pool: int = 16
    connect_timeout: float = 5.0
    statement_timeout: float = 10.0
    lock_timeout: float = 10.0

    def __post_init__(self) -> None:
        """Raises `UsageError("bad-config")`; the message never repeats the URL, which may hold a password."""
        if self.is_sqlite:
            if not self.url.removeprefix("sqlite:"):
                raise UsageError("bad-config", "[database] url names no file")
        elif not self.url.startswith(("postgresql://", "postgres://")):
            raise UsageError("bad-config", "[database] url begins neither with sqlite: nor with postgresql://")
        elif _holds_password(self.url):  # kbs.toml can be read by others than the KBS
            fix = f"Put it into [database] password_file, into ${PASSWORD_VARIABLE}, or into ~/.pgpass."
            raise UsageError("bad-config", "[database] url holds a password", fix)

    @property
    def is_sqlite(self) -> bool:
        return self.url.startswith("sqlite:")


def _holds_password(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.password is not None or "password" in parse_qs(parts.query, keep_blank_values=True)
    except ValueError as error:
        raise UsageError("bad-config", "[database] url is not a URL") from error


def open_database(settings: DatabaseSettings, directory: Path, *, create: bool = False) -> Database:
    """The database that `settings` name; its schema is not looked at (`migration.check` does).

    `create` makes a missing SQLite file; a PostgreSQL database is made by its administrator.
    Raises `UsageError`: "not-found" or "bad-config"; `EnvironmentFault`: also "missing-tool" without psycopg.
    """
    if settings.is_sqlite:
        path = directory / settings.url.removeprefix("sqlite:")
        return SqliteDatabase(path, create=create, lock_timeout=settings.lock_timeout)
    try:
        from enclave_cc.owner.storage import postgresql
    except ImportError as error:
        raise EnvironmentFault(
            "missing-tool", "a KBS on PostgreSQL needs the Python package psycopg", "pip install 'enclave-cc[owner,postgresql]'"
        ) from error
    timeouts = postgresql.Timeouts(settings.connect_timeout, settings.statement_timeout, settings.lock_timeout)
    conninfo = postgresql.read_url(settings.url)
    return postgresql.PostgresDatabase(conninfo, _read_password(settings, directory), pool=settings.pool, timeouts=timeouts)


def _read_password(settings: DatabaseSettings, directory: Path) -> str | None:
    """From the file, else the environment; with neither, libpq looks into ~/.pgpass (or $PGPASSFILE) itself."""
    if settings.password_file is None:
        return os.environ.get(PASSWORD_VARIABLE)
    path = directory / settings.password_file
    try:
        return path.read_text().rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError("bad-config", f"[database] password_file: {path} cannot be read as text") from error
