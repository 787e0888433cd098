"""A pod over a software CPU, with a KBS in memory and a pull that tests steer. The real ones: tests/integration/agent."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "suites"))

from handover_pair import Enclave, Pair, make_release

from enclave_cc.crypto.secret import Secret
from enclave_cc.enclave.agent import pod as pods
from enclave_cc.enclave.agent import settings
from enclave_cc.enclave.agent.init_data import Configuration
from enclave_cc.enclave.image.pull import PulledImage
from enclave_cc.enclave.rootfs.cache import NodeCache
from enclave_cc.errors import PeerError
from enclave_cc.wire.oci.config import ImageConfig
from enclave_cc.wire.oci.digest import Digest
from enclave_cc.wire.oci.manifest import LINUX_AMD64
from enclave_cc.wire.oci.reference import Reference
from enclave_cc.wire.sgx.report import Report, ReportBody, TargetInfo

DIGEST = Digest.parse("sha256:" + "b" * 64)


@dataclass
class LocalPlatform:
    """`tee.Platform` straight over the software CPU, without a socket."""

    enclave: Enclave
    name: str = "simulated"
    simulated: bool = True

    @property
    def identity(self) -> ReportBody:
        return self.enclave.body

    def target_info(self) -> TargetInfo:
        return self.enclave.simulated.target_info()

    def report(self, target: TargetInfo, data: bytes) -> Report:
        return self.enclave.simulated.ereport(target, data)

    def verify(self, report: Report) -> ReportBody:
        return self.enclave.verify(report)

    def quote(self, data: bytes) -> bytes:
        raise NotImplementedError

    def seal_key(self, policy: int, key_id: bytes) -> Secret:
        return Secret(bytes(16))


@dataclass
class MemoryResources:
    resources: dict[str, bytes] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    def get(self, uri: str) -> bytes:
        self.asked.append(uri)
        if uri not in self.resources:
            raise PeerError("key-missing", f"no {uri}")
        return self.resources[uri]


@dataclass
class SteeredPull:
    """Stands in for `pull.pull_image`: waits for `gate`, then gives an image or raises `error`."""

    gate: threading.Event = field(default_factory=threading.Event)
    entered: threading.Event = field(default_factory=threading.Event)
    error: Exception | None = None
    deadlines: list[float] = field(default_factory=list)

    def __call__(
        self, reference: Reference, *, progress: Callable[[str, int, int, str], None], deadline: float, **_: Any
    ) -> PulledImage:
        self.deadlines.append(deadline)
        progress("sha256:1", 10, 100, "pulling")
        self.entered.set()
        assert self.gate.wait(10)
        progress("sha256:1", 100, 100, "done")
        progress("sha256:2", 7, 7, "cached")
        if self.error is not None:
            raise self.error
        config = ImageConfig(LINUX_AMD64, (), entrypoint=("/bin/app",), env=("A=1",))
        return PulledImage(reference, DIGEST, config, make_release().rootfs, ("key",))


@pytest.fixture
def pair() -> Pair:
    return Pair()


@pytest.fixture
def resources() -> MemoryResources:
    return MemoryResources()


@pytest.fixture
def steered(monkeypatch: pytest.MonkeyPatch) -> SteeredPull:
    steered = SteeredPull()
    steered.gate.set()
    monkeypatch.setattr(pods.pull, "pull_image", steered)
    return steered


@pytest.fixture
def pod(pair: Pair, resources: MemoryResources, steered: SteeredPull, tmp_path: Path) -> pods.Pod:
    return pods.Pod(
        platform=LocalPlatform(pair.agent),
        resources=resources,
        configuration=Configuration(b"", "https://kbs.example", "PEM"),
        cache=NodeCache(tmp_path / "cache", Secret(bytes(16))),
        app=pair.app.identity,
        measured=settings.Settings(tee="simulated", handover_lifetime=60),
    )
