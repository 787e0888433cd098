"""A simulated platform, a real quote, and a way to judge either."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from enclave_cc.crypto import rsa3072
from enclave_cc.owner.verifier.claims import Claims
from enclave_cc.owner.verifier.quote import verify_quote
from enclave_cc.owner.verifier.roots import TrustedRoot
from enclave_cc.simulator.cpu import SimulatedEnclave, SoftwareCpu
from enclave_cc.simulator.platform import Condition, Platform
from enclave_cc.simulator.quoting import QuotingEnclave
from enclave_cc.wire.sgx import sigstruct
from enclave_cc.wire.sgx.collateral import Collateral
from enclave_cc.wire.sgx.manifest import Manifest, measure

NOW = int(time.time())
REPORT_DATA = b"bound".ljust(64, b"\0")


@dataclass(frozen=True)
class Simulated:
    """A platform with one production enclave (prod id 7, SVN 9), a debug twin, and its quoting enclave."""

    platform: Platform
    enclave: SimulatedEnclave
    debug: SimulatedEnclave
    quoting: QuotingEnclave

    now = NOW

    @property
    def root(self) -> TrustedRoot:
        return TrustedRoot.from_pem("lab", self.platform.root_certificate_pem(), simulated=True)

    def quote(self, enclave: SimulatedEnclave | None = None) -> bytes:
        return self.quoting.quote((enclave or self.enclave).ereport(self.quoting.target_info(), REPORT_DATA))

    def collateral(self, condition: Condition | None = None) -> Collateral:
        return self.platform.collateral(NOW, condition)

    def verify(self, quote: bytes | None = None, collateral: Collateral | None = None, *, at: int = NOW) -> Claims:
        return verify_quote(quote or self.quote(), collateral or self.collateral(), roots=[self.root], at=at)


def make_simulated(directory: Path) -> Simulated:
    platform = Platform.create(directory)
    cpu = SoftwareCpu(platform)
    manifest = Manifest(role="agent", entrypoint=("/x",)).encode()
    signed = sigstruct.sign(
        rsa3072.SigningKey.generate(), mr_enclave=measure(manifest), isv_prod_id=7, isv_svn=9, date=20260101, allow_debug=True
    ).encode()
    config_id = b"c" * 32 + bytes(32)
    return Simulated(
        platform,
        cpu.launch(manifest, signed, config_id=config_id),
        cpu.launch(manifest, signed, config_id=config_id, debug=True),
        QuotingEnclave(platform),
    )


@pytest.fixture(scope="session")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Simulated:
    return make_simulated(tmp_path_factory.mktemp("verifier") / "simulator")


@pytest.fixture(scope="session")
def other_platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Simulated]:
    yield make_simulated(tmp_path_factory.mktemp("verifier") / "other")
