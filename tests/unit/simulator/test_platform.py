"""The platform's directory and its PKI."""

from __future__ import annotations

import json
import stat
import subprocess
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from enclave_cc.crypto.x509 import Certificate, RevocationList
from enclave_cc.errors import EnvironmentFault, UsageError
from enclave_cc.simulator.platform import Condition, Platform
from enclave_cc.wire.sgx.certification import parse_pem_certificates
from enclave_cc.wire.sgx.collateral import QeIdentity, TcbInfo

if TYPE_CHECKING:
    from conftest import Machine

NOW = int(time.time())


def test_loading_gives_the_same_platform(machine: Machine) -> None:
    assert Platform.load(machine.platform.directory) == machine.platform


def test_only_root_reads_it(machine: Machine) -> None:
    directory = machine.platform.directory
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir()} == {0o600}


def test_a_platform_is_not_overwritten(machine: Machine) -> None:
    with pytest.raises(UsageError) as caught:
        Platform.create(machine.platform.directory)
    assert caught.value.code == "already-exists"


def test_many_at_once_make_one(tmp_path: Path) -> None:
    made: list[Platform] = []
    threads = [threading.Thread(target=lambda: made.append(Platform.ensure(tmp_path / "state"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made == [Platform.load(tmp_path / "state")] * 8
    assert [path.name for path in tmp_path.iterdir()] == ["state"]


def test_an_empty_directory_may_be_there_before(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    Platform.create(tmp_path / "state")
    assert [path.name for path in tmp_path.iterdir()] == ["state"]


def test_a_failed_creation_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state/other").touch()
    with pytest.raises(EnvironmentFault):
        Platform.create(tmp_path / "state")
    assert [path.name for path in tmp_path.iterdir()] == ["state"]


@pytest.mark.parametrize(
    ("name", "content"),
    [("platform.json", b"{}"), ("platform.json", b"\xff"), ("platform.json", b"[]"), ("cpu.key", b"short")],
)
def test_a_broken_platform_is_not_loaded(tmp_path: Path, name: str, content: bytes) -> None:
    with pytest.raises(EnvironmentFault, match="no usable"):
        Platform.load(tmp_path)
    platform = Platform.create(tmp_path / "state")
    (platform.directory / name).write_bytes(content)
    with pytest.raises(EnvironmentFault) as caught:
        Platform.load(platform.directory)
    assert "simulator init" in caught.value.fix


def test_a_missing_certificate_is_named(tmp_path: Path) -> None:
    platform = Platform.create(tmp_path / "state")
    (platform.directory / "pck.crt").unlink()
    with pytest.raises(EnvironmentFault, match=r"lacks pck\.crt"):
        platform.pck_chain_pem()


def test_openssl_verifies_the_chain(machine: Machine) -> None:
    directory = machine.platform.directory
    arguments = ["-CAfile", str(directory / "root-ca.crt"), "-untrusted", str(directory / "platform-ca.crt")]
    for name in ("pck.crt", "tcb-signing.crt"):
        subprocess.run(["openssl", "verify", *arguments, str(directory / name)], check=True, capture_output=True)


def test_every_name_that_is_free_says_simulated(machine: Machine) -> None:
    platform = machine.platform
    ders = parse_pem_certificates(platform.pck_chain_pem()) + parse_pem_certificates(platform.read("tcb-signing.crt"))
    for certificate in map(Certificate.parse, ders):
        assert certificate.common_name == "Intel SGX PCK Platform CA" or "NOT Intel" in certificate.common_name
        assert "NOT Intel" in certificate.parsed.subject.rfc4514_string().replace("\\", "")
    assert platform.fmspc == b"SIMULA"


def test_collateral_lasts_thirty_days(machine: Machine) -> None:
    collateral = machine.platform.collateral(NOW)
    documents = (TcbInfo.parse(collateral.tcb_info), QeIdentity.parse(collateral.qe_identity))
    lists = (RevocationList.parse(collateral.root_ca_crl), RevocationList.parse(collateral.pck_crl))
    assert {d.next_update for d in documents} | {c.next_update for c in lists} == {NOW + 30 * 86400}
    assert max(d.issue_date for d in documents) < NOW
    assert set(json.loads(collateral.encode())) >= {"tcb_info", "pck_crl", "qe_identity_signature"}


def test_conditions_show_in_the_collateral(machine: Machine) -> None:
    platform = machine.platform
    old = TcbInfo.parse(platform.collateral(NOW, Condition(tcb_status="OutOfDate", advisory_ids=("INTEL-SA-1",))).tcb_info)
    level = old.find_level(platform.cpu_svn, platform.pce_svn)
    assert level is not None
    assert (level.status, level.advisory_ids) == ("OutOfDate", ("INTEL-SA-1",))
    assert old.levels[0].status == "UpToDate"
    revoked = RevocationList.parse(platform.collateral(NOW, Condition(pck_revoked=True)).pck_crl)
    (pck,) = parse_pem_certificates(platform.read("pck.crt"))
    assert revoked.names(Certificate.parse(pck))
    assert not RevocationList.parse(platform.collateral(NOW).pck_crl).names(Certificate.parse(pck))
