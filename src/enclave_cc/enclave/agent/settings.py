"""Paths inside the agent enclave, its measured settings, and which resources of the owner it asks for.

Nothing here is the host's to choose: the file is part of the measurement, the URIs are constants.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from enclave_cc.errors import EnvironmentFault, PeerError, UsageError
from enclave_cc.record import fields, record

if TYPE_CHECKING:
    from enclave_cc.wire.sgx.identity import EnclaveIdentity

SETTINGS = "/etc/enclave-cc/agent.toml"
APP_IDENTITY = "/etc/enclave-cc/app-identity.json"
AGENT_SOCKET = "/run/enclave-cc/agent.sock"
CPU_SOCKET = "/run/enclave-cc/cpu.sock"
INIT_DATA = "/run/enclave-cc/initdata.toml"
CACHE_DIRECTORY = "/var/lib/enclave-cc/cache"

SIGNATURE_POLICY_URI = "kbs:///default/security-policy/default"
REGISTRY_CREDENTIAL_URI = "kbs:///default/credential/default"
LAUNCH_POLICY_URI = "kbs:///default/launch-policy/default"

INIT_DATA_LIMIT = 256 * 1024  # bytes
# KEYID of the cache's seal key: 32 bytes that say what the key is for.
CACHE_KEY_ID = b"enclave-cc/cache/1".ljust(32, b"\0")

_SIZE_LIMIT = 1 << 16
_DEADLINE_LIMIT = 86_400


@record
class Settings:
    """Measured. `tee` is the platform's name; the others are seconds.

    `platform_deadline`: one instruction of the platform; `kbs_deadline`: one resource, the handshake included;
    `registry_deadline`: one request, and a wait for a blob's next bytes; `handover_lifetime`: from hello to proof. A
    pull has no limit but the caller's.
    """

    tee: str = "refuse"
    platform_deadline: int = 30
    kbs_deadline: int = 60
    registry_deadline: int = 30
    handover_lifetime: int = 60

    def __post_init__(self) -> None:
        if not isinstance(self.tee, str):
            raise UsageError("bad-config", f"{SETTINGS}: tee is not a string")
        for field in fields(self)[1:]:
            value = getattr(self, field.name)
            if type(value) is not int or not 0 < value <= _DEADLINE_LIMIT:
                raise UsageError("bad-config", f"{SETTINGS}: {field.name} is not an integer from 1 to {_DEADLINE_LIMIT}")


def load_settings(path: str = SETTINGS) -> Settings:
    """Raises `UsageError("bad-config")` for what is not documented, `EnvironmentFault("environment")` when unreadable."""
    import tomllib  # this and the next deferred import: not before the socket listens

    try:
        document = tomllib.loads(read_file(path, _SIZE_LIMIT).decode())
    except ValueError as error:  # UnicodeDecodeError and TOMLDecodeError are
        raise UsageError("bad-config", f"{path} is not TOML") from error
    unknown = set(document) - {field.name for field in fields(Settings)}
    if unknown:
        raise UsageError("bad-config", f"{path} has settings that there are not: {', '.join(sorted(unknown))}")
    return Settings(**document)


def load_app_identity(path: str = APP_IDENTITY) -> EnclaveIdentity:
    """To which app enclaves keys may go. Raises `UsageError("bad-config")`, `EnvironmentFault("environment")`."""
    from enclave_cc.wire.sgx.identity import EnclaveIdentity

    try:
        return EnclaveIdentity.parse(read_file(path, _SIZE_LIMIT))
    except PeerError as error:
        raise UsageError("bad-config", f"{path}: {error.what}") from error


def read_file(path: str, limit: int) -> bytes:
    """At most `limit` bytes of a file. Raises `EnvironmentFault("environment")`, also for a longer one."""
    try:
        with open(path, "rb") as file:  # noqa: PTH123 - pathlib costs 10 ms at the start
            data = file.read(limit + 1)
    except OSError as error:
        raise EnvironmentFault("environment", f"{path}: {error.strerror}") from error
    if len(data) > limit:
        raise EnvironmentFault("environment", f"{path} has more than {limit} bytes")
    return data
