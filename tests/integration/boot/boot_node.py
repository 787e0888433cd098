"""A node around boot init: simulated CPU, an agent that hands over, and images sealed by the agent's own code."""

import contextlib
import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from boot_container import DEADLINE, Container

from enclave_cc.crypto.kdf import aes_cmac
from enclave_cc.crypto.secret import Secret
from enclave_cc.enclave.image.layer import ingest_layer
from enclave_cc.enclave.rootfs.build import build_rootfs
from enclave_cc.enclave.rootfs.cache import NodeCache
from enclave_cc.errors import PeerError
from enclave_cc.simulator.cpu import SimulatedEnclave, SoftwareCpu
from enclave_cc.simulator.platform import Platform
from enclave_cc.simulator.service import CpuService
from enclave_cc.transport import ttrpc_server
from enclave_cc.wire.handover.agent_side import AgentSide
from enclave_cc.wire.handover.release import Release
from enclave_cc.wire.launch.combination import DEFAULT_CAPABILITIES
from enclave_cc.wire.launch.statement import LaunchStatement
from enclave_cc.wire.pb import agent as pb
from enclave_cc.wire.pb import codec
from enclave_cc.wire.sealed.rootfs import RootfsDescriptor
from enclave_cc.wire.sgx.identity import EnclaveIdentity
from enclave_cc.wire.sgx.report import AttributeFlag, Attributes, KeyName, KeyRequest, Report, ReportBody

SOURCES = Path(__file__).resolve().parents[3] / "src"
CONTAINER = "c1"
LIFETIME = 60.0


def make_body(name: str, product: int) -> ReportBody:
    return ReportBody(
        attributes=Attributes(int(AttributeFlag.INIT | AttributeFlag.MODE64BIT), 3),
        mr_enclave=hashlib.sha256(name.encode()).digest(),
        mr_signer=hashlib.sha256(b"signer").digest(),
        isv_prod_id=product,
        isv_svn=1,
    )


def pack_layer(root: Path) -> bytes:
    command = [
        "tar",
        "--create",
        "--numeric-owner",
        "--owner=0",
        "--group=0",
        "--sort=name",
        "--format=posix",
        "-C",
        str(root),
        ".",
    ]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout


def seal_image(cache: Path, layers: Sequence[bytes]) -> RootfsDescriptor:
    """The agent's path from layer bytes to descriptor, without the registry."""
    for name in ("blobs", "index", "leases"):
        (cache / name).mkdir(parents=True, exist_ok=True)
    node = NodeCache(cache, Secret(bytes(16)))
    ingested = []
    for layer in layers:
        digest = "sha256:" + hashlib.sha256(layer).hexdigest()
        ingested.append(
            ingest_layer(
                [layer],
                digest=digest,
                size=len(layer),
                diff_id=digest,
                media_type="application/vnd.oci.image.layer.v1.tar",
                cipher=None,
                directory=node.directory,
                progress=lambda done: None,
            )
        )
    return build_rootfs(node, ingested)


@dataclass
class Node:
    """`releases`: what the agent hands over, by container id; one that is an exception is raised."""

    directory: Path
    cache: Path
    platform: Platform
    releases: dict[str, Release | PeerError] = field(default_factory=dict)
    offers: dict[str, AgentSide] = field(default_factory=dict)
    hang: threading.Event = field(default_factory=threading.Event)
    agent_identity: EnclaveIdentity = field(init=False)
    containers: list[Container] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.cpu = SoftwareCpu(self.platform)
        self.app = SimulatedEnclave(self.cpu, make_body("app", 2))
        self.agent = SimulatedEnclave(self.cpu, make_body("agent", 1))
        self.agent_identity = EnclaveIdentity(mr_enclave=self.agent.identity.mr_enclave)

    @contextlib.contextmanager
    def serving(self, *, agent: bool = True) -> Iterator[None]:
        (self.directory / "container").mkdir(exist_ok=True)
        with contextlib.ExitStack() as stack:
            stack.enter_context(CpuService(self.cpu, self.directory / "cpu.sock", lambda pid: self.app))
            if agent:
                stack.enter_context(self.agent_server())
            try:
                yield
            finally:
                for container in self.containers:
                    container.process.kill()
                    container.process.communicate(timeout=DEADLINE)

    def agent_server(self) -> ttrpc_server.Server:
        services = {pb.HANDOVER_SERVICE: {"Begin": self._begin, "Finish": self._finish}}
        return ttrpc_server.Server(str(self.directory / "agent.sock"), services, log=lambda line: None)

    def start(
        self,
        *,
        container: str = CONTAINER,
        args: Sequence[str] = (),
        settings: str = 'tee = "simulated"\n',
        stdin: int = subprocess.DEVNULL,
    ) -> Container:
        """Boot init in a container of its own."""
        python = sorted({str(SOURCES), sys.prefix})
        binds = [(str(self.directory), "/run/enclave-cc"), (str(self.cache / "blobs"), "/var/lib/enclave-cc/cache/blobs")]
        plan = {
            "python": python,
            "path": str(SOURCES),
            "binds": binds,
            "etc": {"boot.toml": settings, "agent-identity.json": self.agent_identity.encode().decode()},
            "interpreter": sys.executable,
            "args": ["-m", "enclave_cc.enclave.boot", "--container", container, *args],
        }
        written = self.directory / f"plan-{len(self.containers)}.json"
        written.write_text(json.dumps(plan))
        unshare = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--propagation", "private"]
        process = subprocess.Popen(
            [
                *unshare,
                sys.executable,
                str(Path(__file__).with_name("enter_boot.py")),
                str(written),
            ],
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self.containers.append(Container(self.directory / "container", process))
        return self.containers[-1]

    def allow(self, rootfs: RootfsDescriptor, *args: str, container: str = CONTAINER, **members: object) -> None:
        """Lets the agent release `args` in `rootfs`, once."""
        statement = LaunchStatement(
            image="registry.example/app:1",
            manifest_digest="sha256:" + "0" * 64,
            container_id=container,
            args=args,
            env=("PATH=/bin",),
            capabilities=DEFAULT_CAPABILITIES,
        )
        self.releases[container] = Release(replace(statement, **members), rootfs)  # type: ignore[arg-type]

    def _begin(self, payload: bytes) -> bytes:
        request = codec.decode(pb.HandoverRequest, payload)
        side = AgentSide(
            container_id=request.container_id,
            report=self.agent.ereport,
            verify=self._verify,
            app=EnclaveIdentity(mr_enclave=self.app.identity.mr_enclave),
            now=time.monotonic(),
            lifetime=LIFETIME,
        )
        self.offers[request.container_id] = side
        return codec.encode(pb.HandoverResponse(side.receive_hello(request.message, time.monotonic())))

    def _finish(self, payload: bytes) -> bytes:
        request = codec.decode(pb.HandoverRequest, payload)
        if self.hang.is_set():
            time.sleep(5)
        release = self.releases.pop(request.container_id)
        if isinstance(release, PeerError):
            raise release
        side = self.offers.pop(request.container_id)
        return codec.encode(pb.HandoverResponse(side.receive_proof(request.message, time.monotonic(), release)))

    def _verify(self, report: Report) -> ReportBody:
        key = self.agent.egetkey(KeyRequest(key_name=KeyName.REPORT, key_id=report.key_id))
        if aes_cmac(key, report.body.encode()) != report.mac:
            raise PeerError("report-refused", "not for us")
        return report.body


def find_mounts(word: str) -> list[str]:
    """Mounts of this namespace that name `word`."""
    return [line for line in Path("/proc/self/mounts").read_text().splitlines() if word in line]


def memory_of(pid: int) -> int:
    """PSS in bytes."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"no smaps_rollup of {os.fspath(str(pid))}")
