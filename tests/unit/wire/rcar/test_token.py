from __future__ import annotations

import pytest

from enclave_cc.crypto.jwk import TeeKey
from enclave_cc.errors import PeerError
from enclave_cc.wire.rcar import token


@pytest.mark.parametrize(
    ("value", "tier"),
    [
        *((value, "none") for value in (-1, 0, 1)),
        *((value, "affirming") for value in (2, 31, -2, -32)),
        *((value, "warning") for value in (32, 95, -33, -96)),
        *((value, "contraindicated") for value in (96, 127, -97, -128)),
    ],
)
def test_tiers(value: int, tier: str) -> None:
    assert token.tier_of(value) == tier


def test_status_is_the_worst() -> None:
    assert token.status_of({}) == "none"
    assert token.status_of({"hardware": 2, "executables": 3, "file-system": 0}) == "affirming"
    assert token.status_of({"hardware": 2, "executables": 33}) == "warning"
    assert token.status_of({"hardware": 97, "executables": 33}) == "contraindicated"


def test_tee_key_is_found_where_issuers_put_it() -> None:
    key = dict(TeeKey.generate().public.members)
    ours = {"submods": {"cpu0": {token.EVIDENCE: {"runtime_data_claims": {"tee-pubkey": key}}}}}
    assert token.find_tee_key(ours).members == key
    for payload in (
        ours,
        {"tee-pubkey": key},
        {"tdx": {"attester_runtime_data": {"tee-pubkey": key}}},
        {"tdx": {"attester_user_data": {"tee-pubkey": key}}},
        {"customized_claims": {"runtime_data": {"tee-pubkey": key}}, "tee-pubkey": {"kty": "EC"}},
    ):
        assert token.find_tee_key(payload, token.KEY_POINTERS).members == key
    assert token.find_tee_key({"a/b": {"~": key}}, ["/a~1b/~0"]).members == key
    with pytest.raises(PeerError):  # our own tokens have it in one place
        token.find_tee_key({"tee-pubkey": key})
    for payload in ({}, {"submods": []}, {"submods": {"cpu0": {}}}, {"tee-pubkey": {"kty": "EC"}}):
        with pytest.raises(PeerError) as refused:
            token.find_tee_key(payload)
        assert refused.value.code == "unauthenticated"
