"""Fills a KBS's database: many resources and a long audit log, by the stores' own code in great transactions."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg

from enclave_cc.crypto.secret import Secret
from enclave_cc.owner.audit import kinds
from enclave_cc.owner.audit.kinds import Draft
from enclave_cc.owner.audit.log import MAX_GROUP, AuditLog, _Waiting
from enclave_cc.owner.kbs import audit_keys
from enclave_cc.owner.kbs.config import KbsConfig
from enclave_cc.owner.kbs.directory import KbsDirectory
from enclave_cc.owner.kbs.resource_stores import open_key_source
from enclave_cc.owner.resources.database_store import DatabaseResourceStore
from enclave_cc.owner.resources.sealing import Keyring
from enclave_cc.owner.storage.database import Connection, Database
from enclave_cc.owner.storage.settings import open_database
from enclave_cc.wire.rcar.uri import ResourcePath

_AT_ONCE = 10_000
_NOT_COPIED = ("migration", "decision", "recording", "session")


class _Within:
    """A database whose every transaction is part of one that is open."""

    def __init__(self, database: Database, connection: Connection) -> None:
        self._database = database
        self._connection = connection

    def __getattr__(self, name: str) -> Any:
        return getattr(self._database, name)

    @contextmanager
    def write(self, **_: object) -> Iterator[Connection]:
        yield self._connection


def name_path(number: int) -> str:
    return f"bench/many{number // 1000}/{number}"


def fill(kbs: Path, *, resources: int, entries: int) -> None:
    """So many resources more, each with its path as value; audit entries until there are so many."""
    directory = KbsDirectory.locate(str(kbs))
    config = KbsConfig.load(directory)
    database = open_database(config.database, directory.path)
    try:
        ring = Keyring(open_key_source(config.resources.key).read())
        for first in range(0, resources, _AT_ONCE):
            with database.write(durable=False) as db:
                store = DatabaseResourceStore(_Within(database, db), ring)  # type: ignore[arg-type]
                for number in range(first, min(resources, first + _AT_ONCE)):
                    path = name_path(number)
                    store.put(ResourcePath.parse(path), Secret(path.encode()), author="bench")
        keys = audit_keys.read(directory.path)
        log = AuditLog(database, keys.signer, keys=keys.verifiers)
        _append(database, log, entries - log.size(), resources)
    finally:
        database.close()


def _append(database: Database, log: AuditLog, count: int, resources: int) -> None:
    attester = [{"name": "cpu0", "status": "affirming", "mr_enclave": "ab" * 32, "tcb_status": "UpToDate", "root": "bench"}]
    policy = [{"id": "resource-policy", "version": 1, "digest": "cd" * 48}]
    made = 0
    while made < count:
        with database.write(durable=False) as db:
            for _ in range(_AT_ONCE // MAX_GROUP):
                group = []
                for number in range(made, min(count, made + MAX_GROUP)):
                    document = {"attester": attester, "token": f"{number:064x}", "policies": policy, "resource_version": 1}
                    path = name_path(number % max(1, resources))
                    ids = {"decision": f"{number:016x}", "attestation": f"{number:016x}"}
                    group.append(_Waiting(Draft.make(kinds.RELEASE, document, subject=path, **ids), None))
                if group:
                    log._write(db, group)
                made += len(group)


def copy(sqlite: Path, postgresql: str) -> None:
    """What a KBS on SQLite has, to an empty, migrated PostgreSQL; their tables have the same columns."""
    source = sqlite3.connect(f"file:{sqlite}?mode=ro", uri=True)
    tables = [
        name for (name,) in source.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name = 'collateral'")
    ]
    with psycopg.connect(postgresql) as target:
        for table in tables:
            if table not in _NOT_COPIED:
                rows = source.execute(f"SELECT * FROM {table}")
                columns = ", ".join(column[0] for column in rows.description)
                with target.cursor().copy(f"COPY {table} ({columns}) FROM STDIN") as out:
                    for row in rows:
                        out.write_row(row)
    with psycopg.connect(postgresql, autocommit=True) as target:
        target.execute("VACUUM ANALYZE")
    source.close()
