"""Resources in the KBS database, each value sealed with AES-256-GCM under the store key.

A value's additional data are its path and version: a row moved to another path, or an old version put in place of a
new one, does not open. Nonces are random; a store key serves 2^32 writes (NIST SP 800-38D 8.3).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from enclave_cc.crypto import aead
from enclave_cc.crypto.secret import Secret
from enclave_cc.errors import EnvironmentFault, PeerError, UsageError
from enclave_cc.owner.resources.store import MAX_VALUE, Resource, ResourceInfo
from enclave_cc.owner.storage.database import Connection, Database, transact
from enclave_cc.wire.rcar.uri import ResourcePath

# Old versions are kept so that a key put in by mistake can be undone, not as an archive.
KEPT_VERSIONS = 16


class DatabaseResourceStore:
    """A `ResourceStore` on a `Database`."""

    def __init__(self, database: Database, key: Secret, *, now: Callable[[], float] = time.time) -> None:
        self._database = database
        self._cipher = aead.Aead(key)
        self._now = now

    def put(self, path: ResourcePath, value: Secret) -> int:
        if len(value) > MAX_VALUE:
            raise UsageError("too-large", f"a resource has at most {MAX_VALUE} bytes")
        name = str(path)

        def work(db: Connection) -> int:
            row = db.execute("SELECT max(version) FROM resource WHERE path = ?", (name,)).fetchone()
            version = int(row[0] or 0) + 1
            nonce = os.urandom(aead.NONCE_SIZE)
            sealed = self._cipher.encrypt(nonce, value.reveal(), _aad(name, version))
            db.execute("INSERT INTO resource VALUES (?, ?, ?, ?, ?)", (name, version, int(self._now()), nonce, sealed))
            db.execute("DELETE FROM resource WHERE path = ? AND version <= ?", (name, version - KEPT_VERSIONS))
            return version

        return transact(self._database, work, lock=f"resource {name}")

    def get(self, path: ResourcePath, version: int | None = None) -> Resource:
        name = str(path)
        query = "SELECT version, created, nonce, value FROM resource WHERE path = ?"
        with self._database.read() as db:
            if version is None:
                row = db.execute(f"{query} ORDER BY version DESC LIMIT 1", (name,)).fetchone()
            else:
                row = db.execute(f"{query} AND version = ?", (name, version)).fetchone()
        if row is None or row[3] is None:
            raise UsageError("not-found", f"there is no resource {name}", "See `enclave-cc resource ls`.")
        try:
            value = self._cipher.decrypt(row[2], row[3], _aad(name, row[0]))
        except PeerError as error:
            raise EnvironmentFault("environment", f"resource {name} does not open with this store key") from error
        return Resource(path, row[0], row[1], Secret(value))

    def delete(self, path: ResourcePath) -> None:
        name = str(path)

        def work(db: Connection) -> None:
            row = db.execute("SELECT version, value FROM resource WHERE path = ? ORDER BY version DESC LIMIT 1", (name,)).fetchone()
            if row is None or row[1] is None:
                raise UsageError("not-found", f"there is no resource {name}", "See `enclave-cc resource ls`.")
            db.execute("DELETE FROM resource WHERE path = ?", (name,))
            # A tombstone, so that version numbers never repeat.
            db.execute("INSERT INTO resource VALUES (?, ?, ?, NULL, NULL)", (name, row[0] + 1, int(self._now())))

        transact(self._database, work, lock=f"resource {name}")

    def list(self, prefix: str = "") -> list[ResourceInfo]:
        with self._database.read() as db:
            rows = db.execute(
                "SELECT path, version, created, length(value) FROM resource AS latest"
                " WHERE path >= ? AND path < ? AND value IS NOT NULL"
                " AND version = (SELECT max(version) FROM resource WHERE path = latest.path) ORDER BY path",
                (prefix, prefix + "\x7f"),  # paths are ASCII
            ).fetchall()
        return [
            ResourceInfo(ResourcePath.parse(path), version, created, size - aead.TAG_SIZE) for path, version, created, size in rows
        ]


def _aad(name: str, version: int) -> bytes:
    return b"enclave-cc/kbs-resource/1\0" + name.encode() + b"\0" + version.to_bytes(8)
