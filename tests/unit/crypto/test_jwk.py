from __future__ import annotations

import pytest

from enclave_cc.crypto.jwk import PublicJwk, TeeKey
from enclave_cc.errors import PeerError

# RFC 7517 appendix A.1 style key, also in the report data's known answer
KEY = {
    "kty": "EC",
    "crv": "P-256",
    "alg": "ECDH-ES+A256KW",
    "x": "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU",
    "y": "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0",
}


@pytest.mark.parametrize("kind", ["P-256", "P-521", "RSA"])
def test_public_half_and_pem_round_trip(kind: str) -> None:
    key = TeeKey.generate(kind)
    assert PublicJwk.parse(dict(key.public.members)).members == key.public.members
    again = TeeKey.from_pem(key.to_pem())
    assert again.public.members == key.public.members
    assert key.to_pem().startswith(b"-----BEGIN RSA PRIVATE KEY-----" if kind == "RSA" else b"-----BEGIN PRIVATE KEY-----")
    assert "PRIVATE" not in repr(key)


def test_unknown_members_are_dropped() -> None:
    """Upstream's report data covers the key as its own type re-serialises it."""
    assert PublicJwk.parse({**KEY, "kid": "1", "use": "enc"}).members == KEY


@pytest.mark.parametrize(
    "change",
    [
        {"kty": "oct"},
        {"kty": ["EC"]},
        {"crv": "P-384"},
        {"crv": "P-521"},
        {"alg": "ECDH-ES"},
        {"x": KEY["y"]},  # not on the curve
        {"x": "AA" + KEY["x"]},
        {"x": KEY["x"] + "="},
        {"x": KEY["x"].replace("-", "+") + "\n"},
        {"x": None},
        {"y": 5},
        {"x": "A" * 43, "y": "A" * 43},
    ],
)
def test_bad_ec_keys(change: dict[str, object]) -> None:
    with pytest.raises(PeerError) as refused:
        PublicJwk.parse({**KEY, **change})
    assert refused.value.code == "malformed"


@pytest.mark.parametrize("value", [None, [], "EC", {}, {"kty": "RSA"}])
def test_not_a_key(value: object) -> None:
    with pytest.raises(PeerError):
        PublicJwk.parse(value)


def test_bad_rsa_keys() -> None:
    members = dict(TeeKey.generate("RSA").public.members)
    for change in ({"alg": "RSA1_5"}, {"n": members["n"][:100]}, {"n": members["n"] * 4}, {"e": "AQ"}, {"e": "AA"}):
        with pytest.raises(PeerError):
            PublicJwk.parse({**members, **change})


@pytest.mark.parametrize("pem", [b"", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", b"\xff\xfe"])
def test_bad_pem(pem: bytes) -> None:
    with pytest.raises(PeerError):
        TeeKey.from_pem(pem)
