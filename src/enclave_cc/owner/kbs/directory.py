"""A KBS directory: identity, keys, configuration and database of one KBS, mode 0700.

    kbs.toml    how it serves        kbs.crt  TLS certificate, which clients pin    tls.key    its key
    owner.toml  how owners reach it  token.crt, token.key  attestation tokens       store.key  seals resources at rest
    kbs.db      its database, unless PostgreSQL holds it
    audit.key, audit.pub  sign and verify the audit log's checkpoints (owner/kbs/audit_keys.py)
                                     admin.key, admin.pub  the owner's Ed25519 key  kbs.url    where it listens now

`owner.toml`, `admin.key` and `kbs.crt` alone, copied elsewhere, let an owner administer the KBS from another machine.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import time
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from enclave_cc.crypto import self_signed
from enclave_cc.crypto.jws import SigningKey
from enclave_cc.crypto.secret import Secret
from enclave_cc.errors import EnvironmentFault, PeerError, UsageError
from enclave_cc.owner.kbs import audit_keys
from enclave_cc.owner.storage import migration
from enclave_cc.owner.storage.settings import DEFAULT_URL, DatabaseSettings, open_database
from enclave_cc.record import record
from enclave_cc.wire.sgx.certification import parse_pem_certificates

ENVIRONMENT = "ENCLAVE_CC_KBS"
DIRECTORY_HELP = "default: $ENCLAVE_CC_KBS, else ~/.config/enclave-cc/kbs"
DEFAULT_LISTEN = "127.0.0.1:8443"
_CERTIFICATE_YEARS = 10
_YEAR = 365 * 24 * 3600


@record
class KbsDirectory:
    """Paths of one directory; nothing is read before it is asked for."""

    path: Path

    @classmethod
    def locate(cls, given: str | os.PathLike[str] | None) -> KbsDirectory:
        """`given`, else $ENCLAVE_CC_KBS, else ~/.config/enclave-cc/kbs."""
        return cls(Path(given or os.environ.get(ENVIRONMENT) or Path.home() / ".config/enclave-cc/kbs"))

    @property
    def certificate(self) -> Path:
        return self.path / "kbs.crt"

    @property
    def tls_key(self) -> Path:
        return self.path / "tls.key"

    @property
    def configuration(self) -> Path:
        return self.path / "kbs.toml"

    @property
    def owner_configuration(self) -> Path:
        return self.path / "owner.toml"

    @property
    def url_file(self) -> Path:
        return self.path / "kbs.url"

    def read_admin_key(self, name: str = "admin.key") -> SigningKey:
        return SigningKey.from_pem(self._read(name))

    def read_certificate(self, name: str = "kbs.crt") -> str:
        return self._read(name).decode("ascii", "replace")

    def read_identities(self) -> frozenset[bytes]:
        """DER of what clients pin: the certificates in kbs.crt. Raises `UsageError("bad-config")`."""
        try:
            return frozenset(parse_pem_certificates(self._read("kbs.crt").replace(b"\r\n", b"\n").strip() + b"\n"))
        except PeerError as error:
            raise UsageError("bad-config", f"{self.certificate} holds something else than PEM certificates") from error

    def read_toml(self, path: Path) -> dict[str, Any]:
        try:
            return tomllib.loads(self._read(path.name).decode())
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise UsageError("bad-config", f"{path} is not TOML: {error}") from error

    def _read(self, name: str) -> bytes:
        path = self.path / name
        try:
            return path.read_bytes()
        except FileNotFoundError as error:
            raise UsageError(
                "not-found", f"there is no {path}", "Make a KBS directory with `enclave-cc kbs init`, or name yours with --kbs."
            ) from error
        except OSError as error:
            raise EnvironmentFault("environment", f"{path} cannot be read: {error.strerror}") from error


def create(path: Path, *, listen: str, hostnames: Sequence[str], database: str = DEFAULT_URL) -> KbsDirectory:
    """Makes a new KBS directory, whole or not at all.

    Raises `UsageError`: "already-exists" if anything but an empty directory is there; "usage" for a `listen` that is
    not HOST:PORT.
    """
    host, _ = split_listen(listen)
    settings = DatabaseSettings(database)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UsageError(
            "already-exists", f"{path} exists and is not empty", "Choose another directory; keys are never overwritten."
        )
    names = list(dict.fromkeys([*([] if host in ("0.0.0.0", "::") else [host]), *hostnames, "localhost", "127.0.0.1"]))  # noqa: S104
    path.parent.mkdir(parents=True, exist_ok=True)
    # Built beside its place and renamed, so that a killed `init` leaves no half of a KBS.
    building = path.with_name(f".{path.name}.{os.getpid()}.new")
    for left in path.parent.glob(f".{path.name}.*.new"):  # by a killed one: keys that nobody knows of
        writer = left.name.split(".")[-2]
        if writer == str(os.getpid()) or not Path("/proc", writer).exists():
            shutil.rmtree(left, ignore_errors=True)
    try:
        building.mkdir(mode=0o700)
        _fill(KbsDirectory(building), listen=listen, names=names, database=settings)
        building.rename(path)
    except OSError as error:
        raise EnvironmentFault("environment", f"{path} cannot be made: {error.strerror}") from error
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return KbsDirectory(path)


def _fill(new: KbsDirectory, *, listen: str, names: Sequence[str], database: DatabaseSettings) -> None:
    start = int(time.time()) - 3600  # clocks of clients may be behind
    end = start + _CERTIFICATE_YEARS * _YEAR
    for key_name, certificate_name, subject, hosts in (
        ("tls.key", "kbs.crt", "enclave-cc KBS", names),
        ("token.key", "token.crt", "enclave-cc attestation tokens", ()),
    ):
        key = SigningKey.generate("ES256").to_pem()
        certificate = self_signed.make_certificate(key, common_name=subject, hosts=hosts, not_before=start, not_after=end)
        _write(new.path / key_name, key)
        _write(new.path / certificate_name, certificate, mode=0o644)
    admin = SigningKey.generate("EdDSA")
    _write(new.path / "admin.key", admin.to_pem())
    _write(new.path / "admin.pub", admin.public.to_pem(), mode=0o644)
    audit_keys.create(new.path)
    _write(new.path / "store.key", base64.b64encode(Secret.random(32).reveal()) + b"\n")
    _write(new.configuration, _KBS_TOML.format(listen=json.dumps(listen), url=json.dumps(database.url)).encode(), mode=0o644)
    _write(new.owner_configuration, _OWNER_TOML.encode(), mode=0o644)
    if database.is_sqlite:
        opened = open_database(database, new.path, create=True)
        try:
            migration.migrate(opened)
        finally:
            opened.close()


def split_listen(listen: str) -> tuple[str, int]:
    """(host, port) of HOST:PORT or [IPv6]:PORT. Raises `UsageError("usage")`."""
    host, separator, port = listen.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not separator or not host or not port.isdecimal() or int(port) > 65535:
        raise UsageError("usage", f"{listen!r} is not HOST:PORT")
    return host, int(port)


def _write(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


_KBS_TOML = """\
# How this KBS serves. Paths are relative to this directory.

[server]
listen = {listen}
request_deadline = 30    # seconds to send one request, or to stay idle between two
body_limit = 2097152     # bytes
end_deadline = 30        # seconds that requests have to end in after SIGTERM
end_delay = 0            # seconds to go on as before but for /readyz, until a balancer has noticed
end_idle = 2             # seconds that a connection must have been idle before it is closed in the end
log_requests = false     # a line on stderr for each request

[limits]                 # of each process; a rate of 0 is no limit
address_rate = 2000      # requests a second of one client address (IPv6: of its /64)
address_burst = 4000     # of these at once
refusal_rate = 100       # requests a second that may be refused to one address
refusal_burst = 1000
admin_rate = 200         # requests a second of one administrator
admin_burst = 1000
waiting = 512            # handshakes that wait to be judged; of one address at most half
buffered = 134217728     # bytes of bodies of clients that have shown no token; of one address at most half

[metrics]                # Prometheus: /metrics, beside the other paths unless
# listen = "127.0.0.1:9464"   # it has an address of its own, without TLS

[session]
lifetime = 300           # seconds from the challenge on

[token]
issuer = "enclave-cc KBS"
lifetime = 300           # seconds

# [token.trusted.NAME]   # another KBS whose attestation tokens are accepted here: that is trust in its appraisals
# certificates = "other.crt"    # PEM: its token certificate, or the authority that issued it
# jwks = "other.jwks.json"      # or its key set
# issuer = "..."                # what `iss` must be
# tee_key_paths = []            # JSON pointers to the TEE key, before the usual ones

[attestation]
tees = ["sgx"]           # "sample" and "sampledevice" are evidence that proves nothing: for protocol tests only
rsa1_5 = false           # answers for RSA TEE keys of this deprecated form, which makes the attester a padding oracle

# [attestation.plugins.TEE]   # another verifier, of an installed package; it runs inside the KBS, with all its secrets
# entry_point = "..."         # in the group enclave_cc.evidence_verifiers
# settings = {{}}

[collateral]             # beside what `kbs root add` stores
# directory = "collateral"    # QuoteCollateralV3 documents *.json, read again when they change
# url = "https://pccs:8081"   # a PCCS, or Intel's PCS (API v4)
# certificate = "pccs.crt"    # pins the service; without it the system's authorities decide
# root_crl_url = "https://certificates.trustedservices.intel.com/IntelSGXRootCA.der"   # for Intel's, which has no rootcacrl
update = "standard"      # or "early": Intel's word for which TCB recovery counts
refresh = 3600           # seconds after which the service is asked again, in the background
retry = 30               # seconds for which a failure is believed
deadline = 10            # seconds for one bundle

[database]
url = {url}    # or "postgresql://USER@HOST/NAME": then any number of KBS processes may serve from it
# password_file = "..."  # of PostgreSQL; else $ENCLAVE_CC_DATABASE_PASSWORD, else ~/.pgpass
pool = 16                # connections to PostgreSQL, per process; at least 2
connect_timeout = 5      # seconds to reach PostgreSQL, and to wait for a free connection
statement_timeout = 10   # seconds for one statement
lock_timeout = 10        # seconds to wait for another writer

[audit]
checkpoint_every = 60    # seconds after which an append signs a checkpoint
deadline = 30            # seconds that a request may wait for its entry to be on disk

[page]                   # the owner's page at /page, for who has an admin token
serve = true
lifetime = 3600          # seconds that somebody stays in

[recording]              # evidence and requests as they came, for `policy replay`; nothing secret
enabled = true
count = 20000            # the newest so many are kept,
days = 30                # and none that is older

[resources]
backend = "database"     # or the name of a table [resources.backends.NAME]
max_value = 2097152      # bytes of one value

[resources.key]          # seals values in the database and in files
source = "file"          # "environment", or "pkcs11": the file then opens with a token only
file = "store.key"
# variable = "ENCLAVE_CC_STORE_KEY"
# module = "/usr/lib/softhsm/libsofthsm2.so"
# token = "..."          # the token's label; pin_file = "..." or pin_variable = "..."
# label = "enclave-cc store key"

# [resources.backends.NAME]
# kind = "files"         # directory = "resources"
# kind = "pkcs11"        # module, token, pin_file or pin_variable
# kind = "vault"         # address = "https://...", version = 2, mount = "secret", path = "enclave-cc", ca = "vault.pem",
#                        # namespace; token_file or token_variable, or role_id_file and secret_id_file (or ..._variable)
# deadline = 10          # seconds for one request, with its repetitions

# [resources.mounts."team-a/keys"]   # below this REPOSITORY, REPOSITORY/TYPE or REPOSITORY/TYPE/TAG
# backend = "NAME"

[admin]
public_key = "admin.pub" # verifies admin tokens: Ed25519, P-256 or RSA
# issuer = "..."         # what `iss` and `aud` of these tokens must be
# audience = "..."
# default_role = "..."   # of a token without `role`, as older tools of Trustee send
# client_ca = "ca.pem"   # admin paths then need a TLS client certificate by one of these authorities, too

# [admin.identity_providers.NAME]  # more signers of admin tokens
# public_key = "alice.pub"         # or jwks = "keys.json"
# issuer = "..."
# audience = "..."
# roles = ["team-a"]               # that it may give; without, all of them

[admin.roles]            # role of a token -> regular expressions of whole request paths
admin = ["/kbs/v0/.*"]

# [admin.roles.team-a]   # or: resources by prefix
# resources = ["team-a/"]
# actions = ["list", "read", "write", "audit"]
"""

_OWNER_TOML = """\
# How owners reach this KBS. Paths are relative to this directory.

# url = "https://kbs.example:8443"   # unless set: where `kbs serve` says it listens (kbs.url)
certificate = "kbs.crt"
admin_key = "admin.key"
role = "admin"
"""
