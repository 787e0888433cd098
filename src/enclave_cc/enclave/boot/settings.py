"""Paths inside the app container, and boot init's measured settings (docs/formats/control.md, Command line)."""

from __future__ import annotations

import tomllib

from enclave_cc.enclave.tee import open as tee
from enclave_cc.errors import EnvironmentFault, PeerError, UsageError
from enclave_cc.record import record
from enclave_cc.wire.sgx.identity import EnclaveIdentity

SETTINGS = "/etc/enclave-cc/boot.toml"
AGENT_IDENTITY = "/etc/enclave-cc/agent-identity.json"
AGENT_SOCKET = "/run/enclave-cc/agent.sock"
CPU_SOCKET = "/run/enclave-cc/cpu.sock"
CONTAINER_DIRECTORY = "/run/enclave-cc/container"
CONTROL_SOCKET = CONTAINER_DIRECTORY + "/control.sock"
LOG = CONTAINER_DIRECTORY + "/boot.log"
BLOB_DIRECTORY = "/var/lib/enclave-cc/cache/blobs"
WORK_DIRECTORY = "/mnt"

_SIZE_LIMIT = 1 << 16
_DEADLINE_LIMIT = 3600


@record
class Settings:
    """What is measured: the platform's name and deadlines in seconds."""

    tee: str = tee.REFUSE
    mount_deadline: int = 60
    start_deadline: int = 60

    def __post_init__(self) -> None:
        for name in ("mount_deadline", "start_deadline"):
            value = getattr(self, name)
            if type(value) is not int or not 0 < value <= _DEADLINE_LIMIT:
                raise UsageError("bad-config", f"{SETTINGS}: {name} is not an integer from 1 to {_DEADLINE_LIMIT}")
        if not isinstance(self.tee, str):
            raise UsageError("bad-config", f"{SETTINGS}: tee is not a string")


def load_settings(path: str = SETTINGS) -> Settings:
    """Raises `UsageError("bad-config")` for anything that is not documented, `EnvironmentFault` when it cannot be read."""
    try:
        document = tomllib.loads(_read(path).decode())
    except ValueError as error:  # UnicodeDecodeError and TOMLDecodeError are
        raise UsageError("bad-config", f"{path} is not TOML") from error
    unknown = set(document) - {"tee", "mount_deadline", "start_deadline"}
    if unknown:
        raise UsageError("bad-config", f"{path} has settings that there are not: {', '.join(sorted(unknown))}")
    return Settings(**document)


def load_agent_identity(path: str = AGENT_IDENTITY) -> EnclaveIdentity:
    """Which agent may hand keys to this enclave. Raises `UsageError("bad-config")`."""
    try:
        return EnclaveIdentity.parse(_read(path))
    except PeerError as error:
        raise UsageError("bad-config", f"{path}: {error.what}") from error


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(_SIZE_LIMIT)
    except OSError as error:
        raise EnvironmentFault("environment", f"{path}: {error.strerror}") from error
