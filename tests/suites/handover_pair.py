"""Both sides of a handover on one software CPU, for unit and hostile tests."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from hmac import compare_digest
from pathlib import Path

from enclave_cc.crypto.kdf import aes_cmac
from enclave_cc.crypto.secret import Secret
from enclave_cc.errors import PeerError
from enclave_cc.simulator.cpu import SimulatedEnclave, SoftwareCpu
from enclave_cc.simulator.platform import Platform
from enclave_cc.wire.handover.agent_side import AgentSide
from enclave_cc.wire.handover.app_side import AppSide
from enclave_cc.wire.handover.release import Release
from enclave_cc.wire.launch.statement import LaunchStatement
from enclave_cc.wire.sealed.block import Role
from enclave_cc.wire.sealed.descriptor import BlobDescriptor
from enclave_cc.wire.sealed.rootfs import RootfsDescriptor
from enclave_cc.wire.sgx.identity import EnclaveIdentity
from enclave_cc.wire.sgx.report import AttributeFlag, Attributes, KeyName, KeyRequest, Report, ReportBody

LIFETIME = 60.0
SIGNER = hashlib.sha256(b"signer").digest()


def make_cpu(seed: bytes = b"cpu") -> SoftwareCpu:
    """A CPU without the PKI around it: handovers are local."""
    part = hashlib.sha256(seed).digest()
    return SoftwareCpu(
        Platform(
            directory=Path("/nonexistent"),
            fmspc=bytes(6),
            pce_id=bytes(2),
            ppid=bytes(16),
            platform_instance_id=bytes(16),
            qe_id=bytes(16),
            cpu_svn=bytes(16),
            pce_svn=1,
            qe_isv_svn=1,
            root_key=Secret(part[:16]),
            owner_epoch=part[16:],
            seal_fuses=bytes(16),
        )
    )


@dataclass(frozen=True)
class Enclave:
    """What `tee.Platform` offers of one enclave."""

    simulated: SimulatedEnclave

    @property
    def body(self) -> ReportBody:
        return self.simulated.identity

    @property
    def identity(self) -> EnclaveIdentity:
        return EnclaveIdentity(mr_enclave=self.body.mr_enclave)

    def verify(self, report: Report) -> ReportBody:
        key = self.simulated.egetkey(KeyRequest(key_name=KeyName.REPORT, key_id=report.key_id))
        if not compare_digest(aes_cmac(key, report.body.encode()), report.mac):
            raise PeerError("report-refused", "not for us")
        return report.body


def make_enclave(
    cpu: SoftwareCpu, name: str, *, product: int, debug: bool = False, svn: int = 1, signer: bytes = SIGNER
) -> Enclave:
    flags = AttributeFlag.INIT | AttributeFlag.MODE64BIT | (AttributeFlag.DEBUG if debug else 0)
    body = ReportBody(
        attributes=Attributes(int(flags), 3),
        mr_enclave=hashlib.sha256(name.encode()).digest(),
        mr_signer=signer,
        isv_prod_id=product,
        isv_svn=svn,
        config_id=hashlib.sha256(b"init-data").digest() + bytes(32) if product == 1 else bytes(64),
    )
    return Enclave(SimulatedEnclave(cpu, body))


def make_release(container_id: str = "c1") -> Release:
    blob = BlobDescriptor(b"\1" * 16, Secret(b"K" * 32), Role.METADATA, 1 << 17, 5000)
    layer = replace(blob, id=b"\2" * 16, key=Secret(b"L" * 32), role=Role.LAYER)
    statement = LaunchStatement(
        image="r.example/app:1", manifest_digest="sha256:" + "a" * 64, container_id=container_id, args=("/bin/app",)
    )
    return Release(statement, RootfsDescriptor(blob, (layer,)))


class Pair:
    """One agent and one app enclave; `app_side` and `agent_side` start a handover between them."""

    def __init__(self) -> None:
        self.cpu = make_cpu()
        self.agent = make_enclave(self.cpu, "agent", product=1)
        self.app = make_enclave(self.cpu, "app", product=2)
        self.release = make_release()

    def app_side(self, *, container_id: str = "c1", app: Enclave | None = None, agent: EnclaveIdentity | None = None) -> AppSide:
        enclave = app or self.app
        return AppSide(
            container_id=container_id,
            target_info=enclave.simulated.target_info(),
            report=enclave.simulated.ereport,
            verify=enclave.verify,
            agent=agent or self.agent.identity,
        )

    def agent_side(
        self, *, container_id: str = "c1", agent: Enclave | None = None, app: EnclaveIdentity | None = None, now: float = 100.0
    ) -> AgentSide:
        enclave = agent or self.agent
        return AgentSide(
            container_id=container_id,
            report=enclave.simulated.ereport,
            verify=enclave.verify,
            app=app or self.app.identity,
            now=now,
            lifetime=LIFETIME,
        )

    def run(self, app: AppSide, agent: AgentSide) -> Release:
        offer = agent.receive_hello(app.hello(), 101.0)
        return app.receive_release(agent.receive_proof(app.receive_offer(offer), 102.0, self.release))
