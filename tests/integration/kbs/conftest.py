"""A real KBS process and software enclaves that attest to it."""

from __future__ import annotations

import contextlib
import io
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import jwt
import pytest

from enclave_cc.__main__ import main
from enclave_cc.crypto.jws import SigningKey
from enclave_cc.crypto.secret import Secret
from enclave_cc.enclave.attest.client import KbsClient
from enclave_cc.owner.kbs.client import AdminClient
from enclave_cc.owner.reference.values import ReferenceValue
from enclave_cc.simulator.cpu import SimulatedEnclave, SoftwareCpu
from enclave_cc.simulator.platform import Platform as SimulatedMachine
from enclave_cc.simulator.quoting import QuotingEnclave
from enclave_cc.wire.sgx.report import AttributeFlag, Attributes, Report, ReportBody, TargetInfo


def make_admin_token(kbs: Kbs | None, **claims: object) -> str:
    """A token as upstream's tools make it: PyJWT, EdDSA. A claim of None is left out; `kbs` None: of an unknown key."""
    key = SigningKey.generate("EdDSA").to_pem() if kbs is None else (kbs.directory / "admin.key").read_bytes()
    full = {"iss": "TrusteeInDocker", "sub": "admin", "aud": ["KBS"], "role": "admin", "exp": int(time.time()) + 60, **claims}
    return jwt.encode({name: value for name, value in full.items() if value is not None}, key, algorithm="EdDSA")


ENCLAVE_CC = str(Path(sys.executable).parent / "enclave-cc")
MR_ENCLAVE, MR_SIGNER = bytes(range(32)), bytes(range(32, 64))


class EnclavePlatform:
    """A `tee.Platform` whose CPU is in this process."""

    name = "simulated"
    simulated = True

    def __init__(self, machine: SimulatedMachine, identity: ReportBody) -> None:
        self._enclave = SimulatedEnclave(SoftwareCpu(machine), identity)
        self._quoting = QuotingEnclave(machine)

    @property
    def identity(self) -> ReportBody:
        return self._enclave.identity

    def target_info(self) -> TargetInfo:
        return self._enclave.target_info()

    def report(self, target: TargetInfo, data: bytes) -> Report:
        return self._enclave.ereport(target, data.ljust(64, b"\0"))

    def verify(self, report: Report) -> ReportBody:
        raise NotImplementedError

    def seal_key(self, policy: int, key_id: bytes) -> Secret:
        raise NotImplementedError

    def quote(self, data: bytes) -> bytes:
        return self._quoting.quote(self.report(self._quoting.target_info(), data))


def make_identity(
    *, mr_enclave: bytes = MR_ENCLAVE, config_id: bytes = bytes(64), debug: bool = False, isv_svn: int = 3
) -> ReportBody:
    flags = AttributeFlag.INIT | AttributeFlag.MODE64BIT | AttributeFlag.KSS | (AttributeFlag.DEBUG if debug else 0)
    return ReportBody(
        attributes=Attributes(flags, 0x3),
        mr_enclave=mr_enclave,
        mr_signer=MR_SIGNER,
        isv_prod_id=1,
        isv_svn=isv_svn,
        config_id=config_id,
    )


@dataclass(frozen=True)
class Done:
    returncode: int
    stdout: str
    stderr: str


def _read_back(stream: io.TextIOWrapper) -> str:
    stream.flush()
    stream.seek(0)
    return stream.read()


@dataclass
class Kbs:
    """A KBS of its own directory, as a subprocess."""

    directory: Path
    log: Path
    process: subprocess.Popen[bytes] | None = None
    url: str = ""
    clients: list[KbsClient] = field(default_factory=list)
    words: tuple[str, ...] = ()  # more arguments of `kbs serve`

    def start(self) -> None:
        listen = self.url.removeprefix("https://") or "127.0.0.1:0"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [ENCLAVE_CC, "kbs", "serve", "--dir", str(self.directory), "--listen", listen, *self.words],
                stdout=subprocess.PIPE,
                stderr=log,
            )
        assert self.process.stdout is not None
        line = self.process.stdout.readline().decode()
        found = re.fullmatch(r"kbs ready (https://127\.0\.0\.1:\d+)\n", line)
        assert found, line + self.log.read_text()
        self.url = found[1]

    def stop(self, number: int = signal.SIGTERM) -> int:
        assert self.process is not None
        assert self.process.stdout is not None
        self.process.send_signal(number)
        code = self.process.wait(60)
        self.process.stdout.close()
        return code

    def cli(self, *words: str, text: str = "", check: bool = True) -> Done:
        """`enclave-cc WORDS --kbs DIRECTORY`, in this process: starting Python each time would be most of the test."""
        out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", "surrogateescape") for _ in range(2))
        stdin, sys.stdin = sys.stdin, io.TextIOWrapper(io.BytesIO(text.encode()))
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                code = main([*words, "--kbs", str(self.directory)])
        finally:
            sys.stdin = stdin
        done = Done(code, *(_read_back(stream) for stream in (out, err)))
        assert code == 0 or not check, done.stderr
        return done

    @property
    def admin(self) -> AdminClient:
        return AdminClient.from_directory(self.directory)

    @property
    def certificate(self) -> str:
        return (self.directory / "kbs.crt").read_text()

    def client(self, platform: object, *, init_data: bytes | None = None, deadline: float = 20) -> KbsClient:
        made = KbsClient(self.url, self.certificate, platform, init_data, deadline)  # type: ignore[arg-type]
        self.clients.append(made)
        return made

    def events(self, kind: str | None = None) -> list[dict[str, object]]:
        found = [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]
        return [event for event in found if kind is None or event["event"] == kind]


@pytest.fixture(scope="session")
def machine(tmp_path_factory: pytest.TempPathFactory) -> SimulatedMachine:
    return SimulatedMachine.create(tmp_path_factory.mktemp("machine") / "simulator")


@pytest.fixture(scope="session")
def enclave(machine: SimulatedMachine) -> EnclavePlatform:
    """The enclave whose measurement the KBS knows."""
    return EnclavePlatform(machine, make_identity())


@pytest.fixture
def platform_of(machine: SimulatedMachine) -> Callable[..., EnclavePlatform]:
    """Another enclave: `on` another machine, or with other members of its identity."""
    return lambda on=machine, **members: EnclavePlatform(on, make_identity(**members))


def make_kbs(base: Path, machine: SimulatedMachine, *, database: str | None = None) -> Kbs:
    kbs = Kbs(base / "kbs", base / "log")
    kbs.cli("kbs", "init", "--listen", "127.0.0.1:0", *(("--database", database) if database else ()))
    kbs.cli("kbs", "migrate")
    root, collateral = base / "root.pem", base / "collateral.json"
    root.write_text(machine.root_certificate_pem())
    collateral.write_bytes(machine.collateral(int(time.time())).encode())
    kbs.cli("kbs", "root", "add", "here", "--certificate", str(root), "--collateral", str(collateral), "--simulated")
    kbs.start()
    kbs.admin.add_reference_values([ReferenceValue("sgx_mr_enclave", MR_ENCLAVE.hex())])
    return kbs


@pytest.fixture(scope="module")
def kbs(tmp_path_factory: pytest.TempPathFactory, machine: SimulatedMachine) -> Iterator[Kbs]:
    made = make_kbs(tmp_path_factory.mktemp("kbs"), machine)
    yield made
    for client in made.clients:
        client.close()
    assert made.stop() == 0


@pytest.fixture(scope="session")
def new_kbs() -> Callable[..., Kbs]:
    return make_kbs
