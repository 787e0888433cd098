"""Bundles as `enclave-cc bundle build` makes them: reproducible, measured as they lie, able to start."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import enclave_cc
from enclave_cc.crypto.signing_key import SigningKey
from enclave_cc.errors import UsageError
from enclave_cc.owner.publish import sign
from enclave_cc.owner.reference import bundle, bundle_closure, bundle_provenance, statement
from enclave_cc.simulator.bundle import list_files
from enclave_cc.wire.sgx import manifest as enclave_manifest
from enclave_cc.wire.sgx.identity import EnclaveIdentity
from enclave_cc.wire.sgx.manifest import Manifest
from enclave_cc.wire.sgx.sigstruct import SigStruct

pytestmark = pytest.mark.root
COMMAND = Path(sys.executable).parent / "enclave-cc"


def build(out: Path, key: Path, *words: str, seed: str = "0", check: bool = True) -> dict[str, Any]:
    environment = {**os.environ, "PYTHONHASHSEED": seed}
    done = subprocess.run(
        [COMMAND, "bundle", "build", *words, "--out", out, "--key", key], capture_output=True, text=True, env=environment,
        cwd=out.parent if out.parent.exists() else "/", check=False,
    )  # fmt: skip
    if check:
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)  # type: ignore[no-any-return]
    return {"exit": done.returncode, "error": done.stderr}


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("key") / "deeper" / "bundle.pem"


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory, key: Path) -> Path:
    out = tmp_path_factory.mktemp("first") / "app"
    build(out, key, "app", seed="1")
    return out


@pytest.fixture(scope="module")
def agent(app: Path, key: Path) -> Path:
    out = app.parent / "agent"
    build(out, key, "agent", "--app", str(app), seed="2")
    return out


def test_the_same_inputs_give_the_same_bytes_in_another_directory(app: Path, key: Path, tmp_path: Path) -> None:
    reference = build(tmp_path / "x" / "elsewhere", key, "app", seed="77")
    assert reference == json.loads((app / "reference.json").read_text())
    command = ["diff", "-r", "--no-dereference", "--exclude=provenance.json", app, tmp_path / "x/elsewhere"]
    compared = subprocess.run(command, capture_output=True, check=False)
    assert compared.stdout == b""
    assert compared.returncode == 0
    statements = [json.loads((directory / "provenance.json").read_text()) for directory in (app, tmp_path / "x/elsewhere")]
    for each in statements:  # when it was built is not of its bytes, and not measured
        assert set(each["predicate"]["runDetails"].pop("metadata")) == {"startedOn", "finishedOn"}
    assert statements[0] == statements[1]


def test_a_signed_bundle_gives_reference_values_with_its_provenance(agent: Path, tmp_path: Path) -> None:
    signer = SigningKey.generate()
    (tmp_path / "ci.pem").write_bytes(signer.to_pem().reveal())
    signed = bundle_provenance.sign_bundle(agent, sign.read_key(tmp_path / "ci.pem"))
    (value,) = statement.verify(signed.read_bytes(), {"ci": signer.public})
    reference = json.loads((agent / "reference.json").read_text())
    assert (value.value, value.source["isv_svn"]) == (reference["mr_enclave"], reference["isv_svn"])
    inputs = value.source["provenance"]["inputs"]
    lock = bundle.default_payload() / "agent" / "requirements.txt"
    assert inputs["lock:agent/requirements.txt"] == hashlib.sha256(lock.read_bytes()).hexdigest()
    assert "bundle:app" in inputs
    other = tmp_path / "other"
    other.mkdir()
    for name in ("manifest.json", "reference.json"):
        (other / name).write_bytes((agent / name).read_bytes())
    (other / "provenance.json").write_bytes((agent.parent / "app" / "provenance.json").read_bytes())
    with pytest.raises(UsageError, match="of another bundle"):
        bundle_provenance.sign_bundle(other, signer)


@pytest.mark.parametrize("role", ["app", "agent"])
def test_what_lies_on_disk_is_what_was_measured_and_signed(role: str, request: pytest.FixtureRequest) -> None:
    directory: Path = request.getfixturevalue(role)
    claimed = Manifest.parse((directory / "manifest.json").read_bytes())
    assert claimed.files == list_files(directory / "rootfs")
    signed = SigStruct.parse((directory / "sigstruct.bin").read_bytes()).verify()
    reference = json.loads((directory / "reference.json").read_text())
    assert signed.enclave_hash == enclave_manifest.measure(claimed.encode())
    assert (reference["mr_enclave"], reference["mr_signer"]) == (signed.enclave_hash.hex(), signed.mr_signer.hex())
    assert (reference["isv_prod_id"], signed.isv_prod_id) == (bundle.PRODUCT_IDS[role],) * 2


def test_each_accepts_the_other(app: Path, agent: Path) -> None:
    theirs = {d.name: json.loads((d / "reference.json").read_text()) for d in (app, agent)}
    wanted = EnclaveIdentity.parse((agent / "rootfs/etc/enclave-cc/app-identity.json").read_bytes())
    assert wanted == EnclaveIdentity(mr_enclave=bytes.fromhex(theirs["app"]["mr_enclave"]))
    wanted = EnclaveIdentity.parse((app / "rootfs/etc/enclave-cc/agent-identity.json").read_bytes())
    assert wanted == EnclaveIdentity(mr_signer=bytes.fromhex(theirs["agent"]["mr_signer"]), isv_prod_id=1, min_isv_svn=1)


def test_the_signing_key_is_made_for_its_owner_alone(app: Path, key: Path) -> None:
    assert app.exists()
    assert key.stat().st_mode & 0o7777 == 0o600


@pytest.mark.parametrize("role", ["app", "agent"])
def test_every_measured_module_loads_inside(role: str, request: pytest.FixtureRequest) -> None:
    directory: Path = request.getfixturevalue(role)
    modules = bundle_closure.compute_closure(bundle.PROGRAMS[role], Path(enclave_cc.__file__).parent)
    claimed = Manifest.parse((directory / "manifest.json").read_bytes())
    script = "import sys; sys.path[:] = ['/usr/lib/python3.11', '/usr/lib/python3.11/lib-dynload', '/usr/lib/enclave-cc']\n"
    script += f"import importlib\nfor name in {sorted(modules)!r}: importlib.import_module(name)\nprint('loaded', len(sys.modules))"
    command = ["/usr/sbin/chroot", directory / "rootfs", *claimed.entrypoint[:-1], "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, env=dict(claimed.environment), check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("loaded")


def test_a_bundle_is_replaced_whole_and_nothing_else_is(app: Path, key: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/letter").write_text("keep me")
    refused = build(tmp_path / "mine", key, "app", check=False)
    assert refused["exit"] == 3
    assert "already-exists" in refused["error"]
    assert (tmp_path / "mine/letter").read_text() == "keep me"
    subprocess.run(["cp", "-a", app, tmp_path / "old"], check=True)
    (tmp_path / "old/rootfs/intruder").write_text("x")
    build(tmp_path / "old", key, "app")
    assert not (tmp_path / "old/rootfs/intruder").exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine", "old"]


def test_an_app_bundle_that_is_none(key: Path, tmp_path: Path) -> None:
    refused = build(tmp_path / "agent", key, "agent", "--app", str(tmp_path / "nothing"), check=False)
    assert refused["exit"] == 3
    assert list(tmp_path.iterdir()) == []
