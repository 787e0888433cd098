"""Which enclave is accepted as a peer."""

from __future__ import annotations

from dataclasses import replace

import pytest

from enclave_cc.errors import PeerError
from enclave_cc.wire.sgx.identity import EnclaveIdentity
from enclave_cc.wire.sgx.report import AttributeFlag, Attributes, ReportBody

BODY = ReportBody(
    attributes=Attributes(AttributeFlag.INIT | AttributeFlag.MODE64BIT, 3),
    mr_enclave=b"e" * 32,
    mr_signer=b"s" * 32,
    isv_prod_id=2,
    isv_svn=5,
)


@pytest.mark.parametrize(
    "identity",
    [
        EnclaveIdentity(mr_enclave=b"e" * 32),
        EnclaveIdentity(mr_signer=b"s" * 32, isv_prod_id=2),
        EnclaveIdentity(mr_enclave=b"e" * 32, mr_signer=b"s" * 32, isv_prod_id=2, min_isv_svn=5),
    ],
)
def test_accepted(identity: EnclaveIdentity) -> None:
    assert identity.check(BODY) is BODY
    assert EnclaveIdentity.parse(identity.encode()) == identity


@pytest.mark.parametrize(
    "identity",
    [
        EnclaveIdentity(mr_enclave=b"x" * 32),
        EnclaveIdentity(mr_signer=b"x" * 32, isv_prod_id=2),
        EnclaveIdentity(mr_signer=b"s" * 32, isv_prod_id=1),
        EnclaveIdentity(mr_signer=b"s" * 32, isv_prod_id=2, min_isv_svn=6),
        EnclaveIdentity(mr_enclave=b"e" * 32, min_isv_svn=6),
        EnclaveIdentity(mr_enclave=b"e" * 32, mr_signer=b"x" * 32),
    ],
)
def test_refused(identity: EnclaveIdentity) -> None:
    with pytest.raises(PeerError) as caught:
        identity.check(BODY)
    assert caught.value.code == "identity-refused"


def test_debug_and_uninitialised_enclaves() -> None:
    debug = replace(BODY, attributes=Attributes(BODY.attributes.flags | AttributeFlag.DEBUG, 3))
    with pytest.raises(PeerError) as caught:
        EnclaveIdentity(mr_enclave=b"e" * 32).check(debug)
    assert caught.value.code == "debug-enclave"
    assert EnclaveIdentity(mr_enclave=b"e" * 32, allow_debug=True).check(debug) is debug
    with pytest.raises(PeerError, match="initialised"):
        EnclaveIdentity(mr_enclave=b"e" * 32).check(replace(BODY, attributes=Attributes(AttributeFlag.MODE64BIT, 3)))


@pytest.mark.parametrize(
    "data",
    [
        b"{}",
        b'{"mr_signer":"' + b"00" * 32 + b'"}',
        b'{"isv_prod_id":1}',
        b'{"mr_enclave":"00"}',
        b'{"mr_enclave":"' + b"zz" * 32 + b'"}',
        b'{"mr_enclave":"' + b"00" * 32 + b'","min_svn":1}',
        b'{"mr_enclave":"' + b"00" * 32 + b'","min_isv_svn":"1"}',
        b'{"mr_enclave":"' + b"00" * 32 + b'","isv_prod_id":65536}',
        b'{"mr_enclave":"' + b"00" * 32 + b'","allow_debug":1}',
        b"[]",
        b"\xff",
        b"[" * 4000,
        b" " * 5000,
    ],
)
def test_an_identity_that_says_too_little_or_too_much(data: bytes) -> None:
    with pytest.raises(PeerError) as caught:
        EnclaveIdentity.parse(data)
    assert caught.value.code == "malformed"
