"""A simulated platform with a quote, and a PCCS that serves its collateral."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "suites"))

import pccs

from enclave_cc.owner.verifier.quote import Origin, read_origin, verify_quote
from enclave_cc.owner.verifier.roots import TrustedRoot
from enclave_cc.simulator.cpu import SimulatedEnclave, SoftwareCpu
from enclave_cc.simulator.platform import Platform
from enclave_cc.simulator.quoting import QuotingEnclave
from enclave_cc.wire.sgx.collateral import Collateral
from enclave_cc.wire.sgx.report import AttributeFlag, Attributes, ReportBody

NOW = int(time.time())


@dataclass(frozen=True)
class Machine:
    platform: Platform
    quote: bytes

    @property
    def root(self) -> TrustedRoot:
        return TrustedRoot.from_pem("lab", self.platform.root_certificate_pem(), simulated=True)

    @property
    def origin(self) -> Origin:
        return read_origin(self.quote)

    def collateral(self, at: int = NOW) -> Collateral:
        return self.platform.collateral(at)

    def verify(self, collateral: Collateral, at: int = NOW) -> str:
        return verify_quote(self.quote, collateral, roots=[self.root], at=at).tcb_status


def make_machine(directory: Path) -> Machine:
    platform = Platform.create(directory)
    flags = AttributeFlag.INIT | AttributeFlag.MODE64BIT
    enclave = SimulatedEnclave(
        SoftwareCpu(platform), ReportBody(attributes=Attributes(flags, 3), mr_enclave=bytes(32), mr_signer=bytes(32))
    )
    quoting = QuotingEnclave(platform)
    return Machine(platform, quoting.quote(enclave.ereport(quoting.target_info(), bytes(64))))


@pytest.fixture(scope="session")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Machine:
    return make_machine(tmp_path_factory.mktemp("collateral") / "simulator")


@pytest.fixture(scope="session")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Machine:
    return make_machine(tmp_path_factory.mktemp("collateral") / "stranger")


@pytest.fixture
def service(tmp_path: Path) -> Iterator[pccs.Pccs]:
    with pccs.running(tmp_path) as made:
        yield made
