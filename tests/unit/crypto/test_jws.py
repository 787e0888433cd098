"""Compact JWS, against PyJWT in both directions."""

from __future__ import annotations

import base64
import json

import jwt
import pytest

from enclave_cc.crypto.jws import MAX_SIZE, SigningKey, VerifyKey, read_header
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

    for key in (ec.generate_private_key(ec.SECP384R1()), rsa.generate_private_key(65537, 1024)):
        with pytest.raises(UsageError):
            SigningKey.from_pem(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        with pytest.raises(UsageError):
            VerifyKey.from_pem(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    with pytest.raises(UsageError):
        SigningKey.from_pem(b"nonsense")
    with pytest.raises(UsageError):
        VerifyKey.from_pem(b"nonsense")
    assert "ES256" in repr(SigningKey.generate("ES256"))


# --- keys as JWK, RS256, strict JSON


def test_rs256_as_others_sign_it() -> None:
    import jwt
    from cryptography.hazmat.primitives.asymmetric import rsa

    private = rsa.generate_private_key(65537, 2048)
    key = VerifyKey.wrap(private.public_key())
    token = jwt.encode({"role": "admin"}, private, algorithm="RS256")
    assert key.verify(token)[1] == {"role": "admin"}
    assert VerifyKey.from_jwk(key.to_jwk()).verify(token)[1] == {"role": "admin"}
    for other in (jwt.encode({}, private, algorithm="PS256"), jwt.encode({}, private, algorithm="RS512")):
        with pytest.raises(PeerError):
            key.verify(other)


def test_thumbprints_are_those_of_rfc_7638() -> None:
    n = (
        "0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3oknjhMstn64tZ_2W"
        "-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQvRL5hajrn1n91CbOpbISD08qN"
        "Lyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw"
    )
    key = VerifyKey.from_jwk({"kty": "RSA", "n": n, "e": "AQAB", "alg": "RS256", "kid": "2011-04-29"})
    assert key.kid == "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs"
    for algorithm in ("ES256", "EdDSA"):
        made = SigningKey.generate(algorithm).public
        assert VerifyKey.from_jwk(made.to_jwk()).kid == made.kid


@pytest.mark.parametrize(
    "jwk",
    [
        {},
        {"kty": "oct", "k": "Zm9v"},
        {"kty": "EC", "crv": "P-384", "x": "AA", "y": "AA"},
        {"kty": "EC", "crv": "P-256", "x": "A" * 43, "y": "A" * 43},
        {"kty": "EC", "crv": "P-256", "x": 1, "y": None},
        {"kty": "OKP", "crv": "Ed25519", "x": "AA"},
        {"kty": "RSA", "n": "AQAB", "e": "AQAB"},
        {"kty": "RSA", "n": "A" * 4000, "e": "AQAB"},
        {"kty": "RSA", "e": "AQAB"},
    ],
    ids=str,
)
def test_keys_that_verify_nothing(jwk: dict[str, object]) -> None:
    with pytest.raises(PeerError) as refused:
        VerifyKey.from_jwk(jwk)
    assert refused.value.code == "malformed"


@pytest.mark.parametrize(
    "payload", [b'{"role":"a","role":"admin"}', b'{"exp":NaN}', b'{"exp":Infinity}', b'"x"', b"\xff", b"[" * 9999]
)
def test_payloads_that_two_readers_would_read_differently(payload: bytes) -> None:
    """Signed all the same: by an issuer whose own tools are lax."""
    import base64

    import jwt

    key = SigningKey.generate("EdDSA")
    token = jwt.api_jws.encode(payload, key.to_pem().decode(), algorithm="EdDSA")
    assert base64.urlsafe_b64decode(token.split(".")[1] + "==") == payload
    with pytest.raises(PeerError) as refused:
        key.public.verify(token)
    assert refused.value.code == "unauthenticated"


def test_the_header_is_read_before_it_is_believed() -> None:
    assert read_header(SigningKey.generate("ES256").sign({}, {"kid": "x"}))["kid"] == "x"
    for text in ("", "a.b", "!.a.b", "a.b.c.d", "e30.e30." + "A" * 300_000):
        with pytest.raises(PeerError):
            read_header(text)
