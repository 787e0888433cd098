"""SIGSTRUCT, and its verification."""

from __future__ import annotations

from contextlib import suppress

from enclave_cc.crypto import rsa3072
from enclave_cc.errors import PeerError
from enclave_cc.wire.sgx import sigstruct
from enclave_cc.wire.sgx.sigstruct import SigStruct

SEEDS = [
    sigstruct.sign(rsa3072.SigningKey.generate(), mr_enclave=bytes(32), isv_prod_id=1, isv_svn=1, date=20260101).encode(),
]


def target(data: bytes) -> None:
    with suppress(PeerError):
        parsed = SigStruct.parse(data)
        assert parsed.encode() == data
        parsed.verify()
