"""One simulated platform and one enclave signer for all simulator tests."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from enclave_cc.crypto import rsa3072
from enclave_cc.simulator.cpu import SimulatedEnclave, SoftwareCpu
from enclave_cc.simulator.platform import Platform
from enclave_cc.wire.sgx import sigstruct
from enclave_cc.wire.sgx.manifest import Manifest, measure


@dataclass(frozen=True)
class Machine:
    """A platform, its CPU, and a signer whose enclaves it launches."""

    platform: Platform
    cpu: SoftwareCpu
    key: rsa3072.SigningKey

    def manifest(self, name: str = "/x") -> bytes:
        return Manifest(role="agent", entrypoint=(name,)).encode()

    def sign(self, manifest: bytes, *, prod_id: int = 1, svn: int = 5, allow_debug: bool = False) -> bytes:
        return sigstruct.sign(
            self.key, mr_enclave=measure(manifest), isv_prod_id=prod_id, isv_svn=svn, date=20260101, allow_debug=allow_debug
        ).encode()

    def launch(self, name: str = "/x", *, config_id: bytes = bytes(64), svn: int = 5, debug: bool = False) -> SimulatedEnclave:
        manifest = self.manifest(name)
        return self.cpu.launch(manifest, self.sign(manifest, svn=svn, allow_debug=debug), config_id=config_id, debug=debug)


@pytest.fixture(scope="session")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Machine:
    platform = Platform.create(tmp_path_factory.mktemp("platform") / "simulator")
    return Machine(platform, SoftwareCpu(platform), rsa3072.SigningKey.generate())
