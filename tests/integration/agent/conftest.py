"""The agent as a process of its own, on a real simulated CPU, before the real KBS and registry of the testbed.

A mount namespace gives it the paths that its container would; runc is not needed here. The process is identified by
its pid, as the supervisor does it.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import testbed as testbeds
from enclave_cc.crypto.rsa3072 import SigningKey
from enclave_cc.enclave.tee.simulated import SimulatedPlatform
from enclave_cc.errors import PeerError
from enclave_cc.simulator.cpu import SimulatedEnclave, SoftwareCpu
from enclave_cc.simulator.platform import Platform
from enclave_cc.simulator.service import CpuService
from enclave_cc.transport.ttrpc import Client
from enclave_cc.wire.pb import agent as messages
from enclave_cc.wire.pb import codec
from enclave_cc.wire.sgx import sigstruct
from enclave_cc.wire.sgx.identity import EnclaveIdentity
from enclave_cc.wire.sgx.manifest import Manifest, measure

_AGENT = "enclave_cc.enclave.agent"
_ENTER = """
set -e
mount -t tmpfs none /run && mkdir /run/enclave-cc && mount --bind "$0/run" /run/enclave-cc
mount -t tmpfs none /var/lib && mkdir -p /var/lib/enclave-cc/cache && mount --bind "$0/cache" /var/lib/enclave-cc/cache
mount -t overlay none -o "lowerdir=$0/etc:/etc" /etc
exec "$@"
"""


@dataclass
class Build:
    """One enclave's manifest and SIGSTRUCT, without the files behind them: nothing here measures from outside."""

    role: str
    product: int
    key: SigningKey
    heap_size: int = 1 << 28

    @property
    def manifest(self) -> bytes:
        return Manifest(role=self.role, entrypoint=("/python",), heap_size=self.heap_size).encode()

    @property
    def mr_enclave(self) -> bytes:
        return measure(self.manifest)

    def launch(self, cpu: SoftwareCpu, *, config_id: bytes = bytes(64), debug: bool = False) -> SimulatedEnclave:
        signed = sigstruct.sign(
            self.key, mr_enclave=self.mr_enclave, isv_prod_id=self.product, isv_svn=1, date=20261101, allow_debug=True
        )
        return cpu.launch(self.manifest, signed.encode(), config_id=config_id, debug=debug)


@dataclass
class Node:
    """What an agent process finds around it; change it before `start`."""

    directory: Path
    site: testbeds.Testbed
    cpu: SoftwareCpu
    agent: Build
    app: Build
    init_data: str = ""
    bound: bytes | None = None
    tee: str = "simulated"
    debug: bool = False
    process: subprocess.Popen[bytes] | None = None
    service: CpuService | None = None
    enclaves: dict[int, SimulatedEnclave] = field(default_factory=dict)
    client: Client | None = None

    def write(self) -> None:
        for name in ("run", "cache", "etc/enclave-cc"):
            (self.directory / name).mkdir(parents=True, exist_ok=True)
        (self.directory / "etc/enclave-cc/agent.toml").write_text(f'tee = "{self.tee}"\n')
        identity = EnclaveIdentity(mr_enclave=self.app.mr_enclave)
        (self.directory / "etc/enclave-cc/app-identity.json").write_bytes(identity.encode())
        (self.directory / "run/initdata.toml").write_text(self.init_data)

    def start(self) -> None:
        self.write()
        stale = self.socket.stat().st_ino if self.socket.exists() else None
        bound = self.bound if self.bound is not None else hashlib.sha256(self.init_data.encode()).digest() + bytes(32)
        enclave = self.agent.launch(self.cpu, config_id=bound, debug=self.debug)
        if self.service is None:
            self.service = CpuService(self.cpu, self.directory / "run/cpu.sock", self._identify)
            self.service.start()
        log = (self.directory / "agent.log").open("ab")
        self.process = subprocess.Popen(
            [*["unshare", "-m", "--propagation", "private", "sh", "-c"], _ENTER, str(self.directory), sys.executable, "-m", _AGENT],
            stdout=subprocess.DEVNULL,
            stderr=log,
        )
        log.close()
        self.enclaves[self.process.pid] = enclave
        until = time.monotonic() + 20
        while not (self.socket.exists() and self.socket.stat().st_ino != stale):
            assert self.process.poll() is None, self.log()
            assert time.monotonic() < until, self.log()
            time.sleep(0.002)

    @property
    def socket(self) -> Path:
        return self.directory / "run/agent.sock"

    def log(self) -> str:
        return (self.directory / "agent.log").read_text()

    def call(self, method: str, request: Any, answer: type[Any], timeout: float = 60) -> Any:
        if self.client is None:
            self.client = Client(str(self.socket), 60)
        return codec.decode(answer, self.client.call(messages.AGENT_SERVICE, method, codec.encode(request), timeout))

    def pull(self, container: str, image: str) -> messages.PullImageResponse:
        return self.call("PullImage", messages.PullImageRequest(container, image), messages.PullImageResponse)

    def create(self, container: str, image: str, overrides: bytes = b"") -> None:
        request = messages.CreateContainerRequest(container, image, overrides)
        self.call("CreateContainer", request, messages.CreateContainerResponse)

    def status(self) -> messages.GetStatusResponse:
        return self.call("GetStatus", messages.GetStatusRequest(), messages.GetStatusResponse)

    def enter_app(self, build: Build | None = None, *, debug: bool = False) -> SimulatedPlatform:
        """From here on this test's own process is an app enclave."""
        self.enclaves[os.getpid()] = (build or self.app).launch(self.cpu, debug=debug)
        return SimulatedPlatform(str(self.directory / "run/cpu.sock"))

    def stop(self, number: int = signal.SIGKILL) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(10)

    def close(self) -> None:
        if self.client is not None:
            self.client.close()
        if self.process is not None and self.process.poll() is None:
            self.stop()
        if self.service is not None:
            self.service.close()

    def _identify(self, pid: int) -> SimulatedEnclave:
        if pid not in self.enclaves:
            raise PeerError("malformed", f"process {pid} is in no enclave")
        return self.enclaves[pid]


@pytest.fixture(scope="session")
def signing_key() -> SigningKey:
    return SigningKey.generate()


@pytest.fixture(scope="session")
def builds(testbed: testbeds.Testbed, signing_key: SigningKey, tmp_path_factory: pytest.TempPathFactory) -> tuple[Build, Build]:
    """An agent and an app build; the KBS knows the agent's measurement."""
    agent, app = Build("agent", 1, signing_key), Build("app", 2, signing_key)
    reference = tmp_path_factory.mktemp("reference") / "reference.json"
    signer = agent.launch(SoftwareCpu(Platform.load(testbed.state / "simulator"))).identity.mr_signer
    reference.write_text(
        json.dumps(
            {
                "role": "agent",
                "libos": "simulated",
                "mr_enclave": agent.mr_enclave.hex(),
                "mr_signer": signer.hex(),
                "isv_prod_id": 1,
                "isv_svn": 1,
            }
        )
    )
    testbed.cli("refvals", "add", str(reference))
    return agent, app


def write_init_data(site: testbeds.Testbed) -> str:
    certificate = (site.kbs_directory / "kbs.crt").read_text()
    registries = f"[[registry]]\nlocation = {json.dumps(site.registry_host)}\ninsecure = true\n"
    kbs = f"[token_configs.kbs]\nurl = {json.dumps(site.kbs_url)}\ncert = {json.dumps(certificate)}\n"
    image = f"[image]\nregistry_config = {json.dumps(registries)}\n"
    return f'version = "0.1.0"\nalgorithm = "sha256"\n[data]\n"aa.toml" = {json.dumps(kbs)}\n"cdh.toml" = {json.dumps(image)}\n'


@pytest.fixture
def make_node(testbed: testbeds.Testbed, builds: tuple[Build, Build], tmp_path: Path) -> Iterator[Callable[..., Node]]:
    made: list[Node] = []

    def make(name: str = "n", **changes: Any) -> Node:
        node = Node(
            directory=tmp_path / name,
            site=testbed,
            cpu=SoftwareCpu(Platform.load(testbed.state / "simulator")),
            agent=builds[0],
            app=builds[1],
            init_data=write_init_data(testbed),
        )
        for key, value in changes.items():
            setattr(node, key, value)
        made.append(node)
        return node

    yield make
    for node in made:
        node.close()


@pytest.fixture
def node(make_node: Callable[..., Node]) -> Node:
    node = make_node()
    node.start()
    return node
