"""EINIT, EREPORT and EGETKEY: what they check, and what their keys depend on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from enclave_cc.crypto.kdf import aes_cmac
from enclave_cc.errors import PeerError
from enclave_cc.simulator.cpu import SimulatedEnclave, SoftwareCpu
from enclave_cc.simulator.platform import Platform
from enclave_cc.wire.sgx.manifest import measure
from enclave_cc.wire.sgx.report import AttributeFlag, Attributes, KeyName, KeyPolicy, KeyRequest

if TYPE_CHECKING:
    from conftest import Machine


def test_einit_fills_the_identity(machine: Machine) -> None:
    enclave = machine.launch(config_id=b"c" * 64)
    body = enclave.identity
    assert body.mr_enclave == measure(machine.manifest())
    assert (body.isv_prod_id, body.isv_svn, body.config_id) == (1, 5, b"c" * 64)
    assert body.attributes == Attributes(AttributeFlag.INIT | AttributeFlag.MODE64BIT | AttributeFlag.KSS, 3)
    assert body.cpu_svn == machine.platform.cpu_svn


def test_einit_refuses_a_changed_manifest(machine: Machine) -> None:
    signed = machine.sign(machine.manifest("/x"))
    with pytest.raises(PeerError) as caught:
        machine.cpu.launch(machine.manifest("/y"), signed)
    assert caught.value.code == "measurement-changed"


def test_einit_refuses_a_forged_signature(machine: Machine) -> None:
    signed = bytearray(machine.sign(machine.manifest()))
    signed[1026] ^= 1  # ISVSVN
    with pytest.raises(PeerError) as caught:
        machine.cpu.launch(machine.manifest(), bytes(signed))
    assert caught.value.code == "measurement-changed"


def test_einit_refuses_debug_unless_the_signer_allows_it(machine: Machine) -> None:
    manifest = machine.manifest()
    with pytest.raises(PeerError) as caught:
        machine.cpu.launch(manifest, machine.sign(manifest), debug=True)
    assert caught.value.code == "measurement-changed"
    assert machine.launch(debug=True).identity.attributes.debug
    assert not machine.cpu.launch(manifest, machine.sign(manifest, allow_debug=True)).identity.attributes.debug


def test_a_report_s_mac_is_a_cmac_under_the_target_s_key(machine: Machine) -> None:
    one, other = machine.launch("/a"), machine.launch("/b")
    report = one.ereport(other.target_info(), b"d" * 64)
    key = other.egetkey(KeyRequest(key_name=KeyName.REPORT, key_id=report.key_id))
    assert report.mac == aes_cmac(key, report.encode()[:384])
    assert report.body == replace(one.identity, report_data=b"d" * 64)


def test_the_report_key_depends_on_the_whole_target(machine: Machine) -> None:
    target = machine.launch().target_info()
    targets = [
        target,
        replace(target, mr_enclave=bytes(32)),
        replace(target, attributes=Attributes(0, 3)),
        replace(target, attributes=Attributes(target.attributes.flags, 7)),
        replace(target, misc_select=1),
        replace(target, config_id=b"c" * 64),
        replace(target, config_svn=1),
        replace(target, cet_attributes=1),
    ]
    keys = {machine.cpu.report_key(t, bytes(32)).reveal() for t in targets}
    keys.add(machine.cpu.report_key(target, b"\1" * 32).reveal())
    assert len(keys) == len(targets) + 1


def test_the_report_key_does_not_depend_on_signer_or_svn(machine: Machine) -> None:
    request = KeyRequest(key_name=KeyName.REPORT)
    one = machine.launch(svn=5)
    assert one.egetkey(request) == machine.launch(svn=6).egetkey(request)
    assert one.egetkey(request) == SimulatedEnclave(machine.cpu, replace(one.identity, mr_signer=bytes(32))).egetkey(request)


def seal(**changes: object) -> KeyRequest:
    fields: dict[str, object] = {"key_name": KeyName.SEAL, "key_policy": KeyPolicy.MRSIGNER, "isv_svn": 5}
    return KeyRequest(**{**fields, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "change",
    [
        lambda body: replace(body, mr_signer=bytes(32)),
        lambda body: replace(body, isv_prod_id=9),
        lambda body: replace(body, attributes=Attributes(body.attributes.flags | AttributeFlag.DEBUG, 3)),
    ],
    ids=["signer", "product", "debug"],
)
def test_signer_seal_keys_depend_on(machine: Machine, change: Callable[..., object]) -> None:
    enclave = machine.launch()
    other = SimulatedEnclave(machine.cpu, change(enclave.identity))  # type: ignore[arg-type]
    assert enclave.egetkey(seal()) != other.egetkey(seal())


def test_signer_seal_keys_do_not_depend_on_the_measurement(machine: Machine) -> None:
    assert machine.launch("/a").egetkey(seal()) == machine.launch("/b").egetkey(seal())
    policy = KeyPolicy.MRENCLAVE
    assert machine.launch("/a").egetkey(seal(key_policy=policy)) != machine.launch("/b").egetkey(seal(key_policy=policy))


def test_config_id_counts_only_when_asked_for(machine: Machine) -> None:
    a, b = machine.launch(config_id=bytes(64)), machine.launch(config_id=b"c" * 64)
    assert a.egetkey(seal()) == b.egetkey(seal())
    policy = KeyPolicy.MRSIGNER | KeyPolicy.CONFIGID
    assert a.egetkey(seal(key_policy=policy)) != b.egetkey(seal(key_policy=policy))


def test_older_svns_can_be_had_and_newer_ones_not(machine: Machine) -> None:
    old, new = machine.launch(svn=4), machine.launch(svn=5)
    assert new.egetkey(seal(isv_svn=4)) == old.egetkey(seal(isv_svn=4))
    assert new.egetkey(seal(isv_svn=5)) != new.egetkey(seal(isv_svn=4))
    with pytest.raises(PeerError, match="INVALID_ISVSVN"):
        old.egetkey(seal(isv_svn=5))
    newer = bytes([machine.platform.cpu_svn[0] + 1]) + machine.platform.cpu_svn[1:]
    with pytest.raises(PeerError, match="INVALID_CPUSVN"):
        new.egetkey(seal(cpu_svn=newer))


@pytest.mark.parametrize(
    "request_",
    [seal(key_policy=0x40), *(KeyRequest(key_name=name) for name in (0, 1, 2, 5, 0xFFFF)), seal(config_svn=1)],
)
def test_impossible_requests(machine: Machine, request_: KeyRequest) -> None:
    with pytest.raises(PeerError, match="EGETKEY"):
        machine.launch().egetkey(request_)


def test_another_platform_or_owner_epoch_is_another_key(machine: Machine) -> None:
    body = machine.launch().identity
    platforms: list[Platform] = [
        machine.platform,
        replace(machine.platform, owner_epoch=bytes(16)),
        replace(machine.platform, seal_fuses=bytes(16)),
    ]
    keys = {SimulatedEnclave(SoftwareCpu(p), body).egetkey(seal()).reveal() for p in platforms}
    assert len(keys) == 3
