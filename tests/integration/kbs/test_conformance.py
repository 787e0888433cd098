"""Our KBS under the RCAR conformance suite, with sample evidence, with SGX quotes, and by the driver that takes a URL."""

from __future__ import annotations

import base64
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

SUITES = Path(__file__).resolve().parents[2] / "suites"
sys.path.insert(0, str(SUITES))

from rcar_conformance import RcarConformance, Target, sample_evidence  # noqa: E402  (lies in tests/suites)

from .conftest import make_admin_token  # noqa: E402

GPU_POLICY = 'package policy\nimport rego.v1\ntrust_claims := {"hardware": 2}\n'


@pytest.fixture(scope="module")
def tolerant_kbs(tmp_path_factory: pytest.TempPathFactory, machine: Any, new_kbs: Callable[..., Any]) -> Iterator[Any]:
    """A KBS that accepts sample evidence too, since its configuration names it."""
    made = new_kbs(tmp_path_factory.mktemp("conformance"), machine)
    made.stop()
    settings = made.directory / "kbs.toml"
    settings.write_text(settings.read_text().replace('tees = ["sgx"]', 'tees = ["sgx", "sample", "sampledevice"]'))
    made.start()
    body = base64.urlsafe_b64encode(GPU_POLICY.encode()).decode()
    made.admin._send_json("attestation-policy", {"type": "rego", "policy_id": "default_gpu", "policy": body})
    yield made
    assert made.stop() == 0
    assert made.events("bug") == []


def make_target(kbs: Any, tee: str, attest: Callable[[bytes], Any]) -> Target:
    return Target(
        url=kbs.url,
        attest=attest,
        tee=tee,
        certificate=kbs.certificate,
        admin_token=lambda **claims: make_admin_token(kbs, **claims),
        stranger_token=lambda **claims: make_admin_token(None, **claims),
    )


class TestSample(RcarConformance):
    @pytest.fixture
    def target(self, tolerant_kbs: Any) -> Target:
        return make_target(tolerant_kbs, "sample", sample_evidence)


class TestSgx(RcarConformance):
    @pytest.fixture
    def target(self, tolerant_kbs: Any, enclave: Any) -> Target:
        def attest(data: bytes) -> dict[str, str]:
            return {"quote": base64.b64encode(enclave.quote(data.ljust(64, b"\0"))).decode()}

        return make_target(tolerant_kbs, "sgx", attest)


def test_the_driver_by_url(tolerant_kbs: Any, tmp_path: Path) -> None:
    (tmp_path / "kbs.crt").write_text(tolerant_kbs.certificate)
    command = [sys.executable, str(SUITES / "rcar_driver.py"), tolerant_kbs.url, "--certificate", str(tmp_path / "kbs.crt")]
    command += ["--admin-key", str(tolerant_kbs.directory / "admin.key"), "-p", "no:cacheprovider", "-k", "token or every_form"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) >= 8  # type: ignore[index]
