"""Where resources are kept and under which key, as `[resources]` of kbs.toml says it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from enclave_cc.errors import UsageError
from enclave_cc.owner.kbs.settings import Section
from enclave_cc.owner.resources.mounts import check_point
from enclave_cc.owner.resources.origin import Origin
from enclave_cc.owner.resources.store import MAX_VALUE
from enclave_cc.owner.resources.vault_login import AppRole, GivenToken
from enclave_cc.record import field, record

DATABASE = "database"  # the back-end that is always there
# Beyond this a value passes no request body, no Vault and no token.
_LARGEST = 16 << 20


@record
class TokenSettings:
    """A PKCS#11 token. `deadline` in seconds."""

    module: Path
    token: str
    pin: Origin
    deadline: float = 10.0


@record
class KeySettings:
    """The store key. `label`: of the token's key that wraps it; the token is there with source "pkcs11", and may be with
    "file", to read what it wrapped before."""

    source: str = "file"
    file: Path = Path("store.key")
    variable: str = "ENCLAVE_CC_STORE_KEY"
    token: TokenSettings | None = None
    label: str = "enclave-cc store key"


@record
class FilesSettings:
    directory: Path
    deadline: float = 10.0


@record
class VaultSettings:
    """`ca`: PEM; None for the system's CAs."""

    address: str
    version: int
    mount: str
    path: str
    ca: Path | None
    namespace: str
    credentials: GivenToken | AppRole
    deadline: float = 10.0


Backend = FilesSettings | VaultSettings | TokenSettings


@record
class ResourceSettings:
    """`backend` and the values of `mounts` are "database" or names in `backends`; `max_value` in bytes."""

    backend: str = DATABASE
    max_value: int = MAX_VALUE
    key: KeySettings = field(default_factory=KeySettings)
    backends: Mapping[str, Backend] = field(default_factory=dict)
    mounts: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, section: Section, directory: Path) -> ResourceSettings:
        """Paths are relative to `directory`. Raises `UsageError("bad-config")`."""
        backends = {name: _read_backend(name, inner, directory) for name, inner in section.sections("backends").items()}
        mounts = {point: _read_mount(point, inner) for point, inner in section.sections("mounts").items()}
        key = section.raw("key")
        made = cls(
            section.text("backend", DATABASE) or DATABASE,
            int(section.number("max_value", MAX_VALUE, low=1, high=_LARGEST)),
            _read_key(section.inner("key", {} if key is None else key), directory),
            backends,
            mounts,
        )
        for name in (made.backend, *made.mounts.values()):
            if name != DATABASE and name not in backends:
                raise section.fault("backend", f"there is no [resources.backends.{name}]")
        section.finish()
        return made


def _read_mount(point: str, section: Section) -> str:
    check_point(point)
    backend = section.text("backend")
    if backend is None:
        raise section.fault("backend", "the name of a back-end is needed")
    section.finish()
    return backend


def _read_key(section: Section, directory: Path) -> KeySettings:
    source = section.text("source", "file")
    if source not in ("file", "environment", "pkcs11"):
        raise section.fault("source", "file, environment or pkcs11 is needed")
    file, variable = section.text("file", "store.key"), section.text("variable", "ENCLAVE_CC_STORE_KEY")
    label = section.text("label", "enclave-cc store key")
    module = section.text("module")
    if source == "pkcs11" and module is None:
        raise section.fault("module", "the path of the token's PKCS#11 module is needed")
    token = None if module is None else _read_token(section, module, directory)
    section.finish()
    return KeySettings(source, directory / (file or ""), variable or "", token, label or "")


def _read_backend(name: str, section: Section, directory: Path) -> Backend:
    if name == DATABASE:
        raise section.fault("kind", "this name is the KBS database's")
    made: Backend
    match section.text("kind"):
        case "files":
            made = FilesSettings(directory / _need(section, "directory"), _read_deadline(section))
        case "vault":
            made = _read_vault(section, directory)
        case "pkcs11":
            made = _read_token(section, _need(section, "module"), directory)
        case _:
            raise section.fault("kind", "files, vault or pkcs11 is needed")
    section.finish()
    return made


def _read_vault(section: Section, directory: Path) -> VaultSettings:
    ca = section.text("ca")
    token, role_id, secret_id = (_read_origin(section, name, directory) for name in ("token", "role_id", "secret_id"))
    approle_mount = section.text("approle_mount", "approle") or "approle"
    credentials: GivenToken | AppRole
    if token is not None and role_id is None and secret_id is None:
        credentials = GivenToken(token)
    elif token is None and role_id is not None and secret_id is not None:
        credentials = AppRole(role_id, secret_id, approle_mount)
    else:
        raise section.fault("token_file", "either a token, or role_id and secret_id are needed: as ..._file or ..._variable")
    mount, path = _need(section, "mount").strip("/"), (section.text("path", "enclave-cc") or "").strip("/")
    if not mount or not path:
        raise section.fault("path", "a mount, and a path below it that is the KBS's alone, are needed")
    return VaultSettings(
        address=_need(section, "address"),
        version=int(section.number("version", 2, low=1, high=2)),
        mount=mount,
        path=path,
        ca=None if ca is None else directory / ca,
        namespace=section.text("namespace") or "",
        credentials=credentials,
        deadline=_read_deadline(section),
    )


def _read_token(section: Section, module: str, directory: Path) -> TokenSettings:
    pin = _read_origin(section, "pin", directory)
    if pin is None:
        raise section.fault("pin_file", "pin_file or pin_variable is needed")
    return TokenSettings(directory / module, _need(section, "token"), pin, _read_deadline(section))


def _read_origin(section: Section, name: str, directory: Path) -> Origin | None:
    file, variable = section.text(f"{name}_file"), section.text(f"{name}_variable")
    if file is not None and variable is not None:
        raise section.fault(f"{name}_file", "a file or a variable, not both")
    if file is None and variable is None:
        return None
    return Origin(None if file is None else directory / file, variable)


def _read_deadline(section: Section) -> float:
    return float(section.number("deadline", 10, low=0.1, high=3600))


def _need(section: Section, name: str) -> str:
    value = section.text(name)
    if value is None:
        raise section.fault(name, "a text is needed")
    return value


def read_ca(path: Path) -> str:
    """Raises `UsageError("bad-config")`."""
    try:
        return path.read_text("ascii")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError("bad-config", f"{path} cannot be read as PEM") from error
