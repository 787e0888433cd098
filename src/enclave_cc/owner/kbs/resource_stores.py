"""Opens the back-ends that the configuration names, and the keys they are sealed under."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from enclave_cc.owner.kbs.resource_settings import (
    DATABASE,
    Backend,
    FilesSettings,
    KeySettings,
    ResourceSettings,
    TokenSettings,
    VaultSettings,
    read_ca,
)
from enclave_cc.owner.resources.database_store import DatabaseResourceStore
from enclave_cc.owner.resources.files import FileObjects
from enclave_cc.owner.resources.locks import PathLocks
from enclave_cc.owner.resources.mounts import MountedStore
from enclave_cc.owner.resources.pkcs11_objects import TokenObjects
from enclave_cc.owner.resources.pkcs11_token import Pkcs11Token
from enclave_cc.owner.resources.sealing import Keyring
from enclave_cc.owner.resources.store import ResourceStore
from enclave_cc.owner.resources.store_keys import KeyFile, KeySource, KeyVariable, TokenKey
from enclave_cc.owner.resources.vault_client import VaultClient
from enclave_cc.owner.resources.vault_kv1 import VaultObjects
from enclave_cc.owner.resources.vault_kv2 import VaultStore
from enclave_cc.owner.resources.vault_login import Login
from enclave_cc.owner.resources.versioned import VersionedStore
from enclave_cc.owner.storage.database import Database
from enclave_cc.record import record


@record
class OpenedResources:
    """`store`: all of it. `sealed`: the back-ends that hold values under the store key, by name."""

    store: ResourceStore
    sealed: dict[str, DatabaseResourceStore | VersionedStore]


def open_key_source(settings: KeySettings) -> KeySource:
    """Reads nothing yet. Raises `UsageError`, `EnvironmentFault("missing-tool")`."""
    if settings.source == "environment":
        return KeyVariable(settings.variable)
    token = None if settings.token is None else TokenKey(_open_token(settings.token), settings.label)
    return KeyFile(settings.file, token, wrapping=settings.source == "pkcs11")


@contextmanager
def open_resources(settings: ResourceSettings, keys: KeySource, database: Database, directory: Path) -> Iterator[OpenedResources]:
    """Raises `UsageError` for what the configuration names and is not there; no back-end is asked for anything yet."""
    ring = Keyring(keys.read(), read_again=keys.read)
    with ExitStack() as stack:
        sealed: dict[str, DatabaseResourceStore | VersionedStore] = {
            DATABASE: DatabaseResourceStore(database, ring, max_value=settings.max_value)
        }
        stores: dict[str, ResourceStore] = dict(sealed)
        for name, backend in settings.backends.items():
            locks = PathLocks(directory / "resource-locks" / name, deadline=backend.deadline)
            opened = _open(backend, ring, locks, settings.max_value, stack)
            stores[name] = opened
            if isinstance(backend, FilesSettings) and isinstance(opened, VersionedStore):
                sealed[name] = opened
        default = stores[settings.backend]
        store = default
        if settings.mounts:
            store = MountedStore(default, {point: stores[name] for point, name in settings.mounts.items()})
        yield OpenedResources(store, sealed)


def _open(backend: Backend, ring: Keyring, locks: PathLocks, max_value: int, stack: ExitStack) -> ResourceStore:
    match backend:
        case FilesSettings():
            return VersionedStore(FileObjects(backend.directory, deadline=backend.deadline), ring, max_value=max_value)
        case TokenSettings():
            return VersionedStore(TokenObjects(_open_token(backend), locks), None, max_value=max_value)
        case VaultSettings():
            client = _open_vault(backend)
            stack.callback(client.close)
            if backend.version == 1:
                return VersionedStore(VaultObjects(client, f"{backend.mount}/{backend.path}", locks), None, max_value=max_value)
            return VaultStore(client, backend.mount, backend.path, locks, max_value=max_value, deadline=backend.deadline)


def _open_vault(settings: VaultSettings) -> VaultClient:
    return VaultClient(
        settings.address,
        ca_pem=None if settings.ca is None else read_ca(settings.ca),
        tokens=Login(settings.credentials),
        namespace=settings.namespace,
        deadline=settings.deadline,
    )


def _open_token(settings: TokenSettings) -> Pkcs11Token:
    return Pkcs11Token(settings.module, settings.token, settings.pin, deadline=settings.deadline)
