"""The quoting enclave signs what the CPU vouched for, and nothing else. (Its quotes are judged in owner/verifier.)"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from enclave_cc.crypto import ecdsa
from enclave_cc.crypto.x509 import Certificate
from enclave_cc.errors import PeerError
from enclave_cc.simulator.quoting import QuotingEnclave, qe_body
from enclave_cc.wire.sgx.quote import Quote

if TYPE_CHECKING:
    from conftest import Machine


def test_a_quote_s_signatures(machine: Machine) -> None:
    quoting = QuotingEnclave(machine.platform)
    enclave = machine.launch()
    quote = Quote.parse(quoting.quote(enclave.ereport(quoting.target_info(), b"d" * 64)))
    ecdsa.verify(quote.attestation_key, quote.signature, quote.signed_bytes(), code="quote-refused", what="quote")
    pck = Certificate.parse(quote.certification.certificates()[0])
    ecdsa.verify(pck.public_key, quote.qe_report_signature, quote.qe_report.encode(), code="quote-refused", what="QE report")
    binding = hashlib.sha256(quote.attestation_key + quote.authentication_data).digest()
    assert quote.qe_report.report_data == binding + bytes(32)
    assert replace(quote.qe_report, report_data=bytes(64)) == qe_body(machine.platform)
    assert quote.body == replace(enclave.identity, report_data=b"d" * 64)


def test_nothing_is_signed_before_the_mac_is_checked(machine: Machine) -> None:
    quoting = QuotingEnclave(machine.platform)
    enclave = machine.launch()
    good = enclave.ereport(quoting.target_info(), bytes(64))
    for bad in (
        replace(good, body=replace(good.body, mr_enclave=b"x" * 32)),
        replace(good, mac=bytes(16)),
        enclave.ereport(enclave.target_info(), bytes(64)),
    ):
        with pytest.raises(PeerError) as caught:
            quoting.quote(bad)
        assert caught.value.code == "report-refused"
