"""An installed bundle: what `enclave-cc bundle build` wrote, read back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from enclave_cc.errors import PeerError, UsageError
from enclave_cc.record import record

if TYPE_CHECKING:
    from enclave_cc.wire.sgx.manifest import Manifest

ROLES = ("agent", "app")


@record
class Bundle:
    """One bundle directory: what its manifest says of it but the files. What is measured is what lies on disk now."""

    directory: Path
    role: str
    sigstruct: bytes
    debug: bool
    mr_enclave: str
    entrypoint: tuple[str, ...]
    environment: dict[str, str]
    heap_size: int

    @property
    def root(self) -> Path:
        return self.directory / "rootfs"

    def make_manifest(self) -> Manifest:
        """The manifest without its files. Raises `PeerError("malformed")`."""
        from enclave_cc.wire.sgx.manifest import Manifest  # hashing: not before the containers are on their way

        return Manifest(role=self.role, entrypoint=self.entrypoint, environment=self.environment, heap_size=self.heap_size)


def read_bundle(directory: Path, role: str) -> Bundle:
    """Raises `UsageError("not-found")` when there is none, `PeerError` for a manifest that cannot be read."""
    fix = f"Build it: enclave-cc bundle build {role} --out {directory}"
    try:
        reference = json.loads((directory / "reference.json").read_bytes())
        manifest = (directory / "manifest.json").read_bytes()
        sigstruct = (directory / "sigstruct.bin").read_bytes()
        found_role, mr_enclave = reference["role"], str(reference["mr_enclave"])
        debug = bool(reference.get("debug", False))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError("not-found", f"there is no {role} bundle in {directory}", fix) from error
    if found_role != role or not (directory / "rootfs").is_dir():
        raise UsageError("not-found", f"{directory} is no {role} bundle", fix)
    try:
        claimed = json.loads(manifest)
        entrypoint = tuple(str(word) for word in claimed["entrypoint"])
        environment = {str(name): str(value) for name, value in claimed["environment"].items()}
        heap_size = int(claimed["heap_size"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise PeerError("malformed", f"the manifest of {directory} cannot be read", fix) from error
    return Bundle(directory, role, sigstruct, debug, mr_enclave, entrypoint, environment, heap_size)
