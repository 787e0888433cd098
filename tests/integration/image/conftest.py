"""A real registry, an ordinary image, the owner's store and the agent's cache, all without a KBS process."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
if str(ROOT) not in sys.path:  # pytest started as a script does not put it there
    sys.path.insert(0, str(ROOT))

from tests.integration import registry as servers  # noqa: E402

from enclave_cc.crypto.secret import Secret  # noqa: E402
from enclave_cc.crypto.signing_key import SigningKey  # noqa: E402
from enclave_cc.enclave.image import pull  # noqa: E402
from enclave_cc.enclave.rootfs.cache import NodeCache  # noqa: E402
from enclave_cc.errors import PeerError, UsageError  # noqa: E402
from enclave_cc.owner.publish import encrypt, publish, push, sources  # noqa: E402
from enclave_cc.transport.registry import Registry  # noqa: E402
from enclave_cc.transport.registry_config import RegistryConfig  # noqa: E402
from enclave_cc.wire.oci.manifest import LINUX_AMD64  # noqa: E402
from enclave_cc.wire.oci.reference import Reference  # noqa: E402


@dataclass
class Resources:
    """The owner's side and the agent's side of a KBS that releases everything, and notes what it was asked for."""

    values: dict[str, bytes] = field(default_factory=dict)
    released: list[str] = field(default_factory=list)

    def set_resource(self, path: str, value: bytes) -> None:
        self.values[path] = value

    def get_resource(self, path: str) -> bytes:
        if path not in self.values:
            raise UsageError("not-found", path)
        return self.values[path]

    def get(self, uri: str) -> bytes:
        path = uri.removeprefix("kbs:///")
        self.released.append(path)
        if path not in self.values:
            raise PeerError("key-missing", f"there is no {path}")
        return self.values[path]


@dataclass
class Owner:
    """Publishes to one registry, with one signing key."""

    server: servers.RegistryServer
    registry: Registry
    resources: Resources
    key: SigningKey
    directory: Path

    def publish(self, source: str, name: str, **options: object) -> publish.Published:
        image = sources.load_image(sources.open_source(source, lambda host: self.registry), LINUX_AMD64)
        target = Reference.parse(f"{self.server.host}/{name}").with_default_tag()
        request = publish.Request(target, **{"signing_key": self.key, **options})  # type: ignore[arg-type]
        return publish.publish_image(
            image,
            request,
            registry=self.registry,
            store=self.resources,
            lock_directory=self.directory,
            progress=lambda line: None,
        )

    def push(self, source: str, name: str) -> None:
        """As it is: neither encrypted nor signed."""
        image = sources.load_image(sources.open_source(source, lambda host: self.registry), LINUX_AMD64)
        target = Reference.parse(f"{self.server.host}/{name}")
        push.push_image(self.registry, target, encrypt.copy_image(image), lambda line: None)


@dataclass
class Agent:
    """Pulls from one registry into one cache."""

    server: servers.RegistryServer
    resources: Resources
    cache: NodeCache
    stages: dict[str, set[str]] = field(default_factory=dict)

    def pull(self, name: str, **options: object) -> pull.PulledImage:
        self.stages.clear()
        reference = Reference.parse(name if "/" in name else f"{self.server.host}/{name}")
        config = RegistryConfig(insecure=frozenset({self.server.host}), deadline=10)
        return pull.pull_image(
            reference,
            **{  # type: ignore[arg-type]
                "resources": self.resources,
                "registries": config,
                "cache": self.cache,
                "progress": self.note,
                "deadline": 60.0,
                **options,
            },
        )

    def note(self, digest: str, done: int, total: int, stage: str) -> None:
        assert 0 <= done <= total
        self.stages.setdefault(digest, set()).add(stage)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.RegistryServer]:
    with servers.serve(tmp_path_factory.mktemp("registry") / "r") as running:
        yield running


@pytest.fixture
def owner(server: servers.RegistryServer, tmp_path: Path) -> Iterator[Owner]:
    registry = Registry(server.host, insecure=True, deadline=10)
    yield Owner(server, registry, Resources(), SigningKey.generate(), tmp_path)
    registry.close()


@pytest.fixture
def agent(owner: Owner, tmp_path: Path) -> Agent:
    (tmp_path / "cache").mkdir()
    return Agent(owner.server, owner.resources, NodeCache(tmp_path / "cache", Secret(b"s" * 16)))


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An ordinary image of three layers with a whiteout, made by umoci; `DIR:TAG`."""
    directory = tmp_path_factory.mktemp("source")
    source = f"{directory / 'layout'}:app"
    run = ["umoci", "--log", "error"]
    subprocess.run([*run, "init", "--layout", directory / "layout"], check=True)
    subprocess.run([*run, "new", "--image", source], check=True)
    for number in range(2):
        root = directory / f"root{number}"
        (root / "etc").mkdir(parents=True)
        (root / f"etc/file{number}").write_text(f"content {number}\n" * 20000)
        (root / "etc/same").write_text(f"from layer {number}\n")
        subprocess.run([*run, "insert", "--image", source, root, "/"], check=True)
    subprocess.run([*run, "insert", "--image", source, "--whiteout", "/etc/file0"], check=True)
    configuration = ["--config.cmd", "/etc/same", "--config.env", "A=b", "--config.user", "7:8"]
    subprocess.run([*run, "config", "--image", source, *configuration], check=True)
    return source


@pytest.fixture
def skopeo(tmp_path: Path) -> Callable[..., str]:
    """Runs skopeo with TLS verification off for the loopback registry; returns its output."""

    def run(*words: str, check: bool = True, **environment: str) -> str:
        done = subprocess.run(
            ["skopeo", *words],
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
            env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), **environment},
        )
        if check and done.returncode:
            raise AssertionError(done.stderr)
        return done.stdout if check else done.stderr

    return run
