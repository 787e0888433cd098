"""Compact JWS, against PyJWT in both directions."""

from __future__ import annotations

import base64
import json

import jwt
import pytest

from enclave_cc.crypto.jws import MAX_SIZE, SigningKey, VerifyKey
from enclave_cc.errors import PeerError, UsageError

CLAIMS = {"sub": "a", "exp": 4_000_000_000, "role": "admin"}


def part(value: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


@pytest.mark.parametrize("algorithm", ["ES256", "EdDSA"])
def test_pyjwt_reads_ours(algorithm: str) -> None:
    key = SigningKey.generate(algorithm)
    token = key.sign(CLAIMS, {"jwk": key.public.to_jwk()})
    assert jwt.decode(token, key.public.to_pem(), algorithms=[algorithm]) == CLAIMS
    header = jwt.get_unverified_header(token)
    assert (header["typ"], header["alg"]) == ("JWT", algorithm)
    assert jwt.decode(token, jwt.PyJWK(header["jwk"]), algorithms=[algorithm]) == CLAIMS


@pytest.mark.parametrize("algorithm", ["ES256", "EdDSA"])
def test_we_read_pyjwts(algorithm: str) -> None:
    key = SigningKey.generate(algorithm)
    token = jwt.encode(CLAIMS, key.to_pem(), algorithm=algorithm)
    assert VerifyKey.from_pem(key.public.to_pem()).verify(token)[1] == CLAIMS


@pytest.mark.parametrize("algorithm", ["ES256", "EdDSA"])
def test_every_changed_character_is_refused(algorithm: str) -> None:
    key = SigningKey.generate(algorithm)
    token = key.sign({"a": 1})
    for index, old in enumerate(token):
        for new in "A." if old not in "A." else "B":
            with pytest.raises(PeerError) as refused:
                key.public.verify(token[:index] + new + token[index + 1 :])
            assert refused.value.code == "unauthenticated"


def test_algorithm_belongs_to_the_key() -> None:
    """`none`, and HMAC with the public key as its secret, are refused before anything is computed."""
    key = SigningKey.generate("ES256")
    none = f"{part({'alg': 'none'})}.{part(CLAIMS)}."
    confused = f"{part({'alg': 'HS256'})}.{part(CLAIMS)}.{part('x')}"
    other = SigningKey.generate("EdDSA").sign(CLAIMS)
    critical = key.sign(CLAIMS, {"crit": ["x"], "x": 1})
    for token in (none, confused, other, critical, SigningKey.generate("ES256").sign(CLAIMS)):
        with pytest.raises(PeerError) as refused:
            key.public.verify(token)
        assert refused.value.code == "unauthenticated"


@pytest.mark.parametrize("token", ["", ".", "..", "a.b", "a.b.c.d", "é.a.b", "A" * (MAX_SIZE + 1), "W10.W10.AA"])
def test_not_a_token(token: str) -> None:
    with pytest.raises(PeerError) as refused:
        SigningKey.generate("EdDSA").public.verify(token)
    assert refused.value.code == "unauthenticated"


def test_payload_must_be_an_object() -> None:
    key = SigningKey.generate("EdDSA")
    with pytest.raises(PeerError):
        key.public.verify(key.sign([1]))  # type: ignore[arg-type]


def test_keys_of_other_kinds_are_refused() -> None:
    from cryptography.hazmat.primitives.asymmetric import ec, rsa
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

    for key in (ec.generate_private_key(ec.SECP384R1()), rsa.generate_private_key(65537, 2048)):
        with pytest.raises(UsageError):
            SigningKey.from_pem(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        with pytest.raises(UsageError):
            VerifyKey.from_pem(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    with pytest.raises(UsageError):
        SigningKey.from_pem(b"nonsense")
    with pytest.raises(UsageError):
        VerifyKey.from_pem(b"nonsense")
    assert "ES256" in repr(SigningKey.generate("ES256"))
