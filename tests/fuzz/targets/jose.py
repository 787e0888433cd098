"""JWE answers and JWS tokens."""

from __future__ import annotations

from enclave_cc.crypto import jwe
from enclave_cc.crypto.jwk import TeeKey
from enclave_cc.crypto.jws import SigningKey
from enclave_cc.errors import PeerError
from enclave_cc.wire.rcar import token

_TEE_KEYS = [TeeKey.generate("P-256"), TeeKey.generate("RSA")]
_KEYS = [SigningKey.generate("ES256"), SigningKey.generate("EdDSA")]
SEEDS = [
    *(jwe.encrypt(b"secret", key.public) for key in _TEE_KEYS),
    *(key.sign({"exp": 1, "submods": {"cpu0": {}}}).encode() for key in _KEYS),
]


def target(data: bytes) -> None:
    for key in _TEE_KEYS:
        try:
            jwe.decrypt(data, key)
        except PeerError:
            continue
    for signer in _KEYS:
        try:
            token.find_tee_key(signer.public.verify(data.decode("latin-1"))[1])
        except PeerError:
            continue
