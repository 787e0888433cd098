"""One simulated SGX machine: fused keys, SVNs and identifiers, kept in a directory of root's.

    platform.json    what anybody may know: FMSPC, PPID, SVNs
    cpu.key          the CPU's root key, owner epoch and seal fuses, 16 bytes each
    *.pem            private keys: root CA, platform CA, PCK, TCB signing
    *.crt            certificates

Whoever can read the directory is the platform. It proves nothing against root of its machine, and says so in
every name that is free: a verifier must name its root to accept it.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from enclave_cc.crypto.secret import Secret
from enclave_cc.errors import EnclaveCcError, EnvironmentFault, UsageError
from enclave_cc.record import record

if TYPE_CHECKING:
    from enclave_cc.wire.sgx.collateral import Collateral

_VERSION = 1
_SECRET_SIZE = 16
FMSPC = b"SIMULA"  # as bytes: no family of Intel's looks like it
CPU_SVN = bytes([5, 5, 2, 4, 1, 1, 3]) + bytes(9)
PCE_SVN = 13
QE_ISV_SVN = 8


@record(kw_only=True)
class Platform:
    """A loaded platform. Private keys of its PKI are read when they are used."""

    directory: Path
    fmspc: bytes
    pce_id: bytes
    ppid: bytes
    platform_instance_id: bytes
    qe_id: bytes
    cpu_svn: bytes
    pce_svn: int
    qe_isv_svn: int
    root_key: Secret
    owner_epoch: bytes
    seal_fuses: bytes

    @classmethod
    def create(cls, directory: Path) -> Platform:
        """Makes a platform with fresh keys. Raises `UsageError("already-exists")`, `EnvironmentFault("environment")`."""
        import shutil

        from enclave_cc.simulator import pki  # X.509 takes 40 ms to import, and only creation and collateral need it

        if (directory / "platform.json").exists():
            raise UsageError("already-exists", f"there is a simulated platform in {directory} already")
        described = {
            "version": _VERSION,
            "note": "simulated SGX platform, NOT Intel: it protects nothing from root of this machine",
            "fmspc": FMSPC.hex(),
            "pce_id": bytes(2).hex(),
            "ppid": os.urandom(16).hex(),
            "platform_instance_id": os.urandom(16).hex(),
            "qe_id": os.urandom(16).hex(),
            "cpu_svn": CPU_SVN.hex(),
            "pce_svn": PCE_SVN,
            "qe_isv_svn": QE_ISV_SVN,
        }
        partial = directory.with_name(f".{directory.name}.{os.urandom(4).hex()}.partial")
        try:
            directory.parent.mkdir(parents=True, exist_ok=True)
            partial.mkdir(mode=0o700)
            write_private(partial / "platform.json", json.dumps(described, indent=2).encode("ascii") + b"\n")
            write_private(partial / "cpu.key", os.urandom(3 * _SECRET_SIZE))
            pki.create(cls.load(partial))
            if directory.exists():
                directory.rmdir()  # an empty one, made by an installer
            partial.rename(directory)
        except OSError as error:
            raise EnvironmentFault("environment", f"cannot make a simulated platform in {directory}: {error.strerror}") from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        return cls.load(directory)

    @classmethod
    def ensure(cls, directory: Path) -> Platform:
        """The platform in the directory, made when there is none; safe when several do it at once. Raises as both."""
        if not (directory / "platform.json").exists():
            try:
                return cls.create(directory)
            except EnclaveCcError:
                if not (directory / "platform.json").exists():
                    raise  # else somebody else was first
        return cls.load(directory)

    @classmethod
    def load(cls, directory: Path) -> Platform:
        """Raises `EnvironmentFault("environment")` when there is no (whole) platform in the directory."""
        try:
            described = json.loads((directory / "platform.json").read_bytes())
            key = (directory / "cpu.key").read_bytes()
            if described["version"] != _VERSION or len(key) != 3 * _SECRET_SIZE:
                raise ValueError("version or key size")
            return cls(
                directory=directory,
                **{
                    name: bytes.fromhex(described[name])
                    for name in ("fmspc", "pce_id", "ppid", "platform_instance_id", "qe_id", "cpu_svn")
                },
                pce_svn=int(described["pce_svn"]),
                qe_isv_svn=int(described["qe_isv_svn"]),
                root_key=Secret(key[:16]),
                owner_epoch=key[16:32],
                seal_fuses=key[32:],
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise EnvironmentFault(
                "environment",
                f"there is no usable simulated SGX platform in {directory}",
                f"Make one with `enclave-cc simulator init --state {directory}`.",
            ) from error

    def root_certificate_pem(self) -> str:
        """The certificate that an owner names to trust this platform."""
        return self.read("root-ca.crt").decode("ascii")

    def pck_chain_pem(self) -> bytes:
        """PCK certificate, platform CA and root, as a quote carries them."""
        return self.read("pck.crt") + self.read("platform-ca.crt") + self.read("root-ca.crt")

    def collateral(self, now: int, condition: Condition | None = None) -> Collateral:
        """Collateral issued at `now` (seconds since 1970), valid for 30 days; `condition` is for tests."""
        from enclave_cc.simulator import pki  # as above

        return pki.issue_collateral(self, now, condition or Condition())

    def read(self, name: str) -> bytes:
        """A file of the platform's directory. Raises `EnvironmentFault("environment")`."""
        try:
            return (self.directory / name).read_bytes()
        except OSError as error:
            raise EnvironmentFault(
                "environment",
                f"the simulated SGX platform in {self.directory} lacks {name}",
                "Remove the directory and make a new platform with `enclave-cc simulator init`.",
            ) from error


@record(kw_only=True)
class Condition:
    """In what state issued collateral shows the platform."""

    tcb_status: str = "UpToDate"
    advisory_ids: tuple[str, ...] = ()
    pck_revoked: bool = False
    platform_ca_revoked: bool = False
    qe_revoked: bool = False
    wrong_signer: bool = False  # TCB info and QE identity signed by a key that the root never certified
    fmspc: bytes | None = None  # of another platform


def write_private(path: Path, data: bytes) -> None:
    """A new file that only root reads."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
