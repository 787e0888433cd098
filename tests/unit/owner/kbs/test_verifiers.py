"""Every verifier passes the suite; plug-ins are loaded only by name, and held to the interface."""

from __future__ import annotations

import base64
import hashlib
import hmac
import io
import json
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "suites"))

from evidence_verifier import EvidenceVerifierSuite, Subject

from enclave_cc.errors import EnvironmentFault, PeerError, UsageError
from enclave_cc.owner.collateral.source import Found
from enclave_cc.owner.kbs import verifiers
from enclave_cc.owner.kbs.decisions import Log
from enclave_cc.owner.kbs.evidence import SampleDeviceVerifier, SampleVerifier, VerifiedEvidence
from enclave_cc.owner.kbs.settings import Section
from enclave_cc.owner.kbs.sgx_evidence import SgxVerifier
from enclave_cc.owner.kbs.verifiers import GuardedVerifier, PluginContext, PluginSettings, check_tees, load_plugin
from enclave_cc.owner.verifier.roots import TrustedRoot
from enclave_cc.simulator.cpu import SimulatedEnclave, SoftwareCpu
from enclave_cc.simulator.platform import Platform
from enclave_cc.simulator.quoting import QuotingEnclave
from enclave_cc.wire.rcar import binding, messages
from enclave_cc.wire.sgx.report import AttributeFlag, Attributes, ReportBody

NOW = 1_900_000_000


class TestSample(EvidenceVerifierSuite):
    @pytest.fixture
    def subject(self) -> Subject:
        return Subject(SampleVerifier(), lambda data, _: {"svn": "1", "report_data": base64.b64encode(data).decode()}, False)


class TestSampleDevice(EvidenceVerifierSuite):
    @pytest.fixture
    def subject(self) -> Subject:
        return Subject(SampleDeviceVerifier(), lambda data, _: {"svn": "1", "report_data": base64.b64encode(data).decode()}, False)


class Roots:
    """One root, without a database."""

    def __init__(self, *roots: TrustedRoot) -> None:
        self._roots = list(roots)

    def list_roots(self) -> list[TrustedRoot]:
        return self._roots


class Bundle:
    def __init__(self, machine: Platform) -> None:
        self._found = Found.read(machine.collateral(NOW))

    def find(self, origin: object, root: object, at: int) -> Found:
        return self._found


def quote_of(machine: Platform, report_data: bytes, config_id: bytes) -> dict[str, str]:
    identity = ReportBody(
        attributes=Attributes(AttributeFlag.INIT | AttributeFlag.MODE64BIT | AttributeFlag.KSS, 3),
        mr_enclave=bytes(32),
        mr_signer=bytes(32),
        config_id=config_id,
    )
    quoting = QuotingEnclave(machine)
    report = SimulatedEnclave(SoftwareCpu(machine), identity).ereport(quoting.target_info(), binding.pad(report_data))
    return messages.encode_sgx_evidence(quoting.quote(report))


@pytest.fixture(scope="session")
def machines(tmp_path_factory: pytest.TempPathFactory) -> tuple[Platform, Platform]:
    base = tmp_path_factory.mktemp("verifiers")
    return Platform.create(base / "one"), Platform.create(base / "other")


class TestSgx(EvidenceVerifierSuite):
    @pytest.fixture
    def subject(self, machines: tuple[Platform, Platform]) -> Subject:
        machine, stranger = machines
        root = TrustedRoot.from_pem("lab", machine.root_certificate_pem(), simulated=True)
        verifier = SgxVerifier(Roots(root), Bundle(machine), now=lambda: float(NOW))  # type: ignore[arg-type]
        return Subject(
            verifier,
            lambda data, digest: quote_of(machine, data, binding.pad(digest or b"")),
            True,
            lambda data: quote_of(stranger, data, bytes(64)),
        )


# --- a third party's


class KeyedVerifier:
    """A made-up TEE: a MAC under a key that its settings name. What a plug-in's author would write."""

    def __init__(self, context: PluginContext) -> None:
        self.tee = context.tee
        self._key = (context.directory / context.settings["key"]).read_bytes()

    def verify(self, evidence: object, *, report_data: bytes, init_data_digest: bytes | None) -> VerifiedEvidence:
        if not isinstance(evidence, dict) or not isinstance(evidence.get("mac"), str):
            raise PeerError("malformed", "not a MAC")
        if not hmac.compare_digest(evidence["mac"].encode(), self.mac(self._key, report_data, init_data_digest).encode()):
            raise PeerError("quote-refused", "wrong MAC")
        init_data = None if init_data_digest is None else init_data_digest.hex()
        return VerifiedEvidence(self.tee, "cpu", {"keyed": True}, report_data.hex(), init_data)

    @staticmethod
    def mac(key: bytes, report_data: bytes, digest: bytes | None) -> str:
        return hmac.new(key, report_data + (digest or b""), hashlib.sha256).hexdigest()


class Broken:
    """A plug-in with every bug; which, its settings say."""

    def __init__(self, context: PluginContext) -> None:
        self.tee = context.settings.get("tee", context.tee)
        self._bug = context.settings.get("bug", "")

    def verify(self, evidence: object, *, report_data: bytes, init_data_digest: bytes | None) -> Any:
        match self._bug:
            case "crash":
                raise RuntimeError("secret detail")
            case "exit":
                raise EnvironmentFault("environment", "no")
            case "code":
                raise PeerError("not-found", "no")
            case "none":
                return None
            case "true":
                return True
            case "other tee":
                return VerifiedEvidence("sgx", "cpu", {}, None, None)
            case "class":
                return VerifiedEvidence(self.tee, "../cpu", {}, None, None)
            case "claims":
                return VerifiedEvidence(self.tee, "cpu", {"x": float("nan")}, None, None)
            case "bytes":
                return VerifiedEvidence(self.tee, "cpu", {"x": b""}, None, None)
        raise AssertionError


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What an installed package would declare. Records which of its entry points are loaded."""
    loaded: list[str] = []

    class Point(EntryPoint):
        def load(self) -> Callable[[PluginContext], Any]:
            loaded.append(self.name)
            return {"keyed": KeyedVerifier, "broken": Broken}[self.name]

    points = EntryPoints(Point(name, "acme:make", verifiers.GROUP) for name in ("keyed", "broken", "twice", "twice"))
    monkeypatch.setattr(verifiers, "entry_points", lambda *, group: points.select(group=group))
    yield loaded


class TestPlugin(EvidenceVerifierSuite):
    @pytest.fixture
    def subject(self, tmp_path: Path, installed: list[str]) -> Subject:
        (tmp_path / "mac.key").write_bytes(b"k" * 32)
        context = PluginContext("acme-tee", {"key": "mac.key"}, tmp_path)
        return Subject(
            load_plugin(context, "keyed", Log(io.StringIO())),
            lambda data, digest: {"mac": KeyedVerifier.mac(b"k" * 32, data, digest)},
            True,
            lambda data: {"mac": KeyedVerifier.mac(b"x" * 32, data, None)},
        )


@pytest.mark.parametrize("bug", ["crash", "exit", "code", "none", "true", "other tee", "class", "claims", "bytes"])
def test_a_plug_in_that_fails_refuses(bug: str, tmp_path: Path, installed: list[str]) -> None:
    stream = io.StringIO()
    verifier = load_plugin(PluginContext("acme-tee", {"bug": bug}, tmp_path), "broken", Log(stream))
    assert isinstance(verifier, GuardedVerifier)
    with pytest.raises(PeerError) as refused:
        verifier.verify({}, report_data=bytes(48), init_data_digest=None)
    assert refused.value.code == "quote-refused"
    assert json.loads(stream.getvalue())["event"] == "verifier-failed"
    assert "secret detail" not in stream.getvalue()


def test_plug_ins_are_loaded_by_name_only(tmp_path: Path, installed: list[str]) -> None:
    made = verifiers.make_verifiers(
        ("sample",),
        {},
        roots=None,  # type: ignore[arg-type]
        collateral=None,  # type: ignore[arg-type]
        directory=tmp_path,
        log=Log(io.StringIO()),
    )
    assert list(made) == ["sample"]
    assert installed == []
    for name, settings in (("absent", {}), ("twice", {}), ("keyed", {}), ("broken", {"tee": "other"})):
        with pytest.raises(UsageError) as refused:
            load_plugin(PluginContext("acme-tee", settings, tmp_path), name, Log(io.StringIO()))
        assert refused.value.code == "bad-config"


def test_what_the_configuration_may_name() -> None:
    plugin = {"acme-tee": PluginSettings("keyed")}

    def check(tees: tuple[str, ...], plugins: dict[str, PluginSettings]) -> None:
        check_tees(tees, plugins, Section({}, name="attestation", path="kbs.toml"))

    check(("sgx", "sample", "sampledevice"), {})
    check(("acme-tee",), plugin)
    for tees, plugins in (
        (("tdx",), {}),
        (("sgx",), plugin),
        (("sgx",), {"sgx": PluginSettings("keyed")}),
        (("Bad!",), {"Bad!": PluginSettings("keyed")}),
    ):
        with pytest.raises(UsageError, match="attestation"):
            check(tees, plugins)
