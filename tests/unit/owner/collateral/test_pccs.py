"""A real HTTPS server that speaks as a PCCS: what it serves is judged like a bundle that the owner gave."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from enclave_cc.errors import PeerError
from enclave_cc.owner.collateral.pccs import PccsClient, PccsSettings
from enclave_cc.owner.verifier.quote import read_origin, verify_quote
from enclave_cc.owner.verifier.roots import intel_root
from enclave_cc.wire.sgx.collateral import Collateral

VECTORS = Path(__file__).parents[3] / "vectors/sgx"


@contextmanager
def client(service: Any, **options: Any) -> Iterator[PccsClient]:
    made = PccsClient(PccsSettings(service.url, options.pop("certificate_pem", service.certificate), **options))
    try:
        yield made
    finally:
        made.close()


@pytest.mark.parametrize("form", ["hex", "der"])
def test_simulated_collateral(service: Any, machine: Any, form: str) -> None:
    service.add(machine.collateral())
    service.crl_form = form
    with client(service) as pccs:
        fetched = pccs.fetch(machine.origin.fmspc.hex(), machine.origin.pck_ca)
    assert fetched == machine.collateral() or machine.verify(fetched) == "UpToDate"
    assert machine.verify(fetched) == "UpToDate"
    assert sorted(service.requests) == ["pckcrl", "qe/identity", "rootcacrl", "tcb"]


def test_intel_s_own_collateral(service: Any) -> None:
    collateral = Collateral.parse((VECTORS / "phala-collateral.json").read_bytes())
    quote = (VECTORS / "phala-quote.bin").read_bytes()
    service.add(collateral)
    origin = read_origin(quote)
    with client(service) as pccs:
        fetched = pccs.fetch(origin.fmspc.hex(), origin.pck_ca)
    assert (fetched.tcb_info, fetched.tcb_info_signature) == (collateral.tcb_info, collateral.tcb_info_signature)
    claims = verify_quote(quote, fetched, roots=[intel_root()], at=1750330571)
    assert claims.tcb_status == "ConfigurationAndSWHardeningNeeded"
    assert claims.advisory_ids == ("INTEL-SA-00289", "INTEL-SA-00615")


def refused(service: Any, machine: Any, **options: Any) -> str:
    with client(service, **options) as pccs, pytest.raises(PeerError) as caught:
        pccs.fetch(machine.origin.fmspc.hex(), machine.origin.pck_ca)
    assert caught.value.code == "collateral-refused"
    return caught.value.what


def test_what_a_service_can_do_wrong(service: Any, machine: Any, tmp_path: Path) -> None:
    assert "status 404" in refused(service, machine)  # knows no platform
    service.add(machine.collateral())
    for name, body in (
        ("tcb", b""),
        ("tcb", b'{"tcbInfo":{"id":"SGX"}}'),
        ("tcb", b'{"tcbInfo":5,"signature":"' + b"0" * 128 + b'"}'),
        ("qe/identity", b"{" * 5000),
        ("pckcrl", b"-----BEGIN X509 CRL-----\n!\n-----END X509 CRL-----"),
        ("rootcacrl", b"\xff\xfe"),
        ("tcb", b'{"tcbInfo":{},"signature":"' + b"0" * 128 + b'"}'),  # no issuer chain
    ):
        service.mangle = {name: body}
        assert service.url in refused(service, machine)
    service.mangle, service.fail = {}, 500
    assert "status 500" in refused(service, machine)
    service.fail, service.delay = None, 1.0
    assert "in time" in refused(service, machine, deadline=0.2)
    service.delay = 0.0
    other = (VECTORS / "phala-collateral.json").read_text()  # some other certificate
    pem = Collateral.parse(other).pck_crl_issuer_chain
    assert "certificate" in refused(service, machine, certificate_pem=pem)


def test_a_service_that_is_not_there(machine: Any, service: Any) -> None:
    service.url = "https://127.0.0.1:1"
    assert "127.0.0.1:1" in refused(service, machine)
