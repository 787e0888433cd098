"""What every `enclave.tee` back-end must do. A test module gives a pair of enclaves on one platform, and one elsewhere."""

from __future__ import annotations

import pytest

from enclave_cc.enclave.tee.platform import Platform
from enclave_cc.errors import PeerError, UsageError
from enclave_cc.record import record, replace
from enclave_cc.wire.sgx.quote import Quote
from enclave_cc.wire.sgx.report import KeyPolicy, TargetInfo


@record
class Enclaves:
    """`one` and `other` have the same signer and different measurements, `elsewhere` runs on another machine."""

    one: Platform
    other: Platform
    elsewhere: Platform


class TeeSuite:
    """Derive from it, and give a fixture `enclaves`."""

    def test_identities(self, enclaves: Enclaves) -> None:
        assert enclaves.one.identity.report_data == bytes(64)
        assert enclaves.one.identity.mr_enclave != enclaves.other.identity.mr_enclave
        assert enclaves.one.identity.mr_signer == enclaves.other.identity.mr_signer
        assert enclaves.one.target_info() == TargetInfo.of(enclaves.one.identity)

    def test_a_report_for_a_peer(self, enclaves: Enclaves) -> None:
        report = enclaves.one.report(enclaves.other.target_info(), b"hello")
        body = enclaves.other.verify(report)
        assert body == replace(enclaves.one.identity, report_data=b"hello".ljust(64, b"\0"))

    def test_a_report_for_somebody_else_is_refused(self, enclaves: Enclaves) -> None:
        report = enclaves.one.report(enclaves.other.target_info(), b"")
        for reader in (enclaves.one, enclaves.elsewhere):
            with pytest.raises(PeerError) as caught:
                reader.verify(report)
            assert caught.value.code == "report-refused"

    def test_a_changed_report_is_refused(self, enclaves: Enclaves) -> None:
        report = enclaves.one.report(enclaves.other.target_info(), b"")
        forged = [
            replace(report, body=replace(report.body, report_data=b"\1" + bytes(63))),
            replace(report, body=replace(report.body, mr_enclave=enclaves.other.identity.mr_enclave)),
            replace(report, body=replace(report.body, isv_svn=report.body.isv_svn + 1)),
            replace(report, mac=bytes(16)),
            replace(report, key_id=bytes(32)),
        ]
        for bad in forged:
            with pytest.raises(PeerError) as caught:
                enclaves.other.verify(bad)
            assert caught.value.code == "report-refused"

    def test_quotes_say_who_asked(self, enclaves: Enclaves) -> None:
        quote = Quote.parse(enclaves.one.quote(b"d" * 48))
        assert quote.body == replace(enclaves.one.identity, report_data=b"d" * 48 + bytes(16))

    def test_report_data_has_a_limit(self, enclaves: Enclaves) -> None:
        with pytest.raises(UsageError):
            enclaves.one.report(enclaves.one.target_info(), bytes(65))
        with pytest.raises(UsageError):
            enclaves.one.quote(bytes(65))

    def test_seal_keys(self, enclaves: Enclaves) -> None:
        one, other, elsewhere, key_id = enclaves.one, enclaves.other, enclaves.elsewhere, b"k" * 32
        assert len(one.seal_key(KeyPolicy.MRENCLAVE, key_id)) == 16
        assert one.seal_key(KeyPolicy.MRENCLAVE, key_id) == one.seal_key(KeyPolicy.MRENCLAVE, key_id)
        keys = [
            one.seal_key(KeyPolicy.MRENCLAVE, key_id),
            one.seal_key(KeyPolicy.MRENCLAVE, bytes(32)),
            one.seal_key(KeyPolicy.MRSIGNER, key_id),
            one.seal_key(KeyPolicy.MRSIGNER | KeyPolicy.CONFIGID, key_id),
            other.seal_key(KeyPolicy.MRENCLAVE, key_id),
            elsewhere.seal_key(KeyPolicy.MRENCLAVE, key_id),
            elsewhere.seal_key(KeyPolicy.MRSIGNER, key_id),
        ]
        assert len({key.reveal() for key in keys}) == len(keys)

    def test_a_signer_s_seal_key_is_shared_by_its_enclaves_of_one_product(self, enclaves: Enclaves) -> None:
        policy = KeyPolicy.MRSIGNER | KeyPolicy.NOISVPRODID
        assert enclaves.one.seal_key(policy, bytes(32)) == enclaves.other.seal_key(policy, bytes(32))
