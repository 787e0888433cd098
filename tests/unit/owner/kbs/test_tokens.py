"""Attestation tokens: issued, rotated, and those of others."""

from __future__ import annotations

import base64
import json
import ssl
from pathlib import Path
from typing import Any

import jwt
import pytest

from enclave_cc.crypto import self_signed
from enclave_cc.crypto.jwk import TeeKey
from enclave_cc.crypto.jws import SigningKey, read_header
from enclave_cc.errors import PeerError, UsageError
from enclave_cc.owner.kbs import token_keys, trusted_issuers
from enclave_cc.owner.kbs.token_keys import KeySet, TokenKeys, read_key_set
from enclave_cc.owner.kbs.tokens import LEEWAY, TokenIssuer, TrustedIssuer
from enclave_cc.owner.kbs.trusted_issuers import TrustedIssuerFiles, TrustedIssuers
from enclave_cc.owner.policy.appraisal import Appraisal
from enclave_cc.owner.policy.rego import Policy
from enclave_cc.wire.rcar import token as wire

TEE_KEY = TeeKey.generate()
EVIDENCE = {"sgx": {}, "runtime_data_claims": {"tee-pubkey": dict(TEE_KEY.public.members)}}
APPRAISAL = Appraisal(Policy("default_cpu", "package policy"), {"hardware": 2}, {"extra": 1}, EVIDENCE)


def certify(key: SigningKey, now: float) -> str:
    pem = self_signed.make_certificate(
        key.to_pem(), common_name="tokens", hosts=(), not_before=int(now) - 60, not_after=int(now) + 10**6
    )
    return pem.decode()


def make_issuer(clock: Any, key: SigningKey | None = None, *, certificate: str | None = None, **options: Any) -> TokenIssuer:
    keys = KeySet(key or SigningKey.generate("ES256"), certificate)
    return TokenIssuer(TokenKeys(lambda: keys, lifetime=360, now=clock), issuer="me", lifetime=300, now=clock, **options)


def refused(issuer: TokenIssuer, token: str) -> str:
    with pytest.raises(PeerError) as caught:
        issuer.verify(token)
    assert caught.value.code == "unauthenticated"
    return caught.value.what


def test_tokens(clock: Any) -> None:
    key = SigningKey.generate("ES256")
    issuer = make_issuer(clock, key)
    token = issuer.issue([("cpu", APPRAISAL), ("gpu", APPRAISAL), ("gpu", APPRAISAL)])
    verified = issuer.verify(token)
    assert verified.issuer is None
    assert verified.tee_key.members == TEE_KEY.public.members
    assert sorted(verified.claims["submods"]) == ["cpu0", "gpu0", "gpu1"]
    assert verified.claims["submods"]["cpu0"]["ear.status"] == "affirming"
    assert verified.claims["submods"]["cpu0"]["extra"] == 1
    options = {"verify_exp": False, "verify_iat": False}
    assert jwt.decode(token, key.public.to_pem(), algorithms=["ES256"], options=options)["iss"] == "me"  # type: ignore[arg-type]
    (published,) = issuer.published_keys()
    assert jwt.decode(token, jwt.PyJWK(dict(published)), algorithms=["ES256"], options=options)["iss"] == "me"  # type: ignore[arg-type]
    assert read_header(token)["kid"] == published["kid"]
    clock.now += 300 + LEEWAY - 1
    issuer.verify(token)
    clock.now += 1
    assert "expired" in refused(issuer, token)


def test_a_token_that_was_not_signed_here(clock: Any) -> None:
    """Another process verifies it, whole, and then knows it; both read the same in it."""
    key = SigningKey.generate("ES256")
    here, there = make_issuer(clock, key), make_issuer(clock, key)
    token = here.issue([("cpu", APPRAISAL)])
    assert here.verify(token) == there.verify(token) == there.verify(token)
    head, payload, signature = token.split(".")
    forged = f"{head}.{payload}.{signature[:-6]}AAAAAA"
    for issuer in (here, there):
        assert "signature" in refused(issuer, forged)
    clock.now += 300 + LEEWAY
    for issuer in (here, there):
        assert "expired" in refused(issuer, token)


def test_a_known_token_ends_with_its_key(clock: Any) -> None:
    old = KeySet(SigningKey.generate("ES256"))
    held = [old]
    issuer = TokenIssuer(TokenKeys(lambda: held[0], lifetime=10**9, now=clock), issuer="me", lifetime=10**9, now=clock)
    token = issuer.issue([("cpu", APPRAISAL)])
    issuer.verify(token)
    held[0] = KeySet(SigningKey.generate("ES256"))  # and the old one is not kept as retired
    clock.now += token_keys.CHECK_SECONDS
    issuer.issue([("cpu", APPRAISAL)])
    refused(issuer, token)


def test_the_members_of_upstream_s_example_token(clock: Any) -> None:
    """attestation-service/docs/example.token.json, and `ear_token/broker.rs`: names and kinds of every member."""
    key = SigningKey.generate("ES256")
    issuer = make_issuer(clock, key, certificate=certify(key, clock.now))
    token = issuer.issue([("cpu", APPRAISAL)])
    payload = issuer.verify(token).claims
    assert sorted(payload) == ["ear.verifier-id", "eat_profile", "exp", "iat", "iss", "submods"]
    assert payload["eat_profile"] == "tag:github.com,2024:confidential-containers/Trustee"
    assert sorted(payload["ear.verifier-id"]) == ["build", "developer"]
    submod = payload["submods"]["cpu0"]
    assert set(submod) >= {"ear.status", "ear.trustworthiness-vector", "ear.appraisal-policy-id", "ear.veraison.annotated-evidence"}
    assert submod["ear.appraisal-policy-id"] == "default"
    header = read_header(token)
    assert (header["typ"], header["alg"]) == ("JWT", "ES256")
    assert {"kty", "crv", "alg", "x", "y", "x5c"} <= set(header["jwk"])
    assert (header["jwk"]["kty"], header["jwk"]["crv"], header["jwk"]["alg"]) == ("EC", "P-256", "ES256")


# --- rotation


@pytest.fixture
def directory(tmp_path: Path, clock: Any) -> Path:
    token_keys.rotate(tmp_path, now=clock.now)
    return tmp_path


def test_a_rotation_loses_no_token(directory: Path, clock: Any) -> None:
    """Two instances on one directory: what either signed is accepted by both until it expires."""
    one, other = (
        TokenIssuer(
            TokenKeys(lambda: read_key_set(directory), lifetime=300 + LEEWAY, now=clock), issuer="me", lifetime=300, now=clock
        )
        for _ in range(2)
    )
    before = one.issue([("cpu", APPRAISAL)])
    clock.now += 1
    kid = token_keys.rotate(directory, now=clock.now)
    clock.now += 1
    late = other.issue([("cpu", APPRAISAL)])  # has not noticed
    clock.now += 4
    after = one.issue([("cpu", APPRAISAL)])
    assert read_header(after)["kid"] == kid != read_header(before)["kid"]
    for token in (before, late, after):
        one.verify(token)
        other.verify(token)
    assert [jwk["kid"] for jwk in other.published_keys()] == [kid, read_header(before)["kid"]]
    assert all(jwk["x5c"] for jwk in other.published_keys())
    clock.now += 300 + LEEWAY + 20
    assert [jwk["kid"] for jwk in one.published_keys()] == [kid]
    assert refused(one, before)
    assert "PRIVATE" not in "".join(path.read_text() for path in (directory / token_keys.RETIRED).iterdir())


def test_rotations_in_a_row(directory: Path, clock: Any) -> None:
    keys = TokenKeys(lambda: read_key_set(directory), lifetime=360, now=clock)
    issuer = TokenIssuer(keys, issuer="me", lifetime=300, now=clock)
    tokens = []
    for _ in range(5):
        tokens.append(issuer.issue([("cpu", APPRAISAL)]))
        clock.now += 10
        token_keys.rotate(directory, now=clock.now)
    for token in tokens:
        issuer.verify(token)
    clock.now += 2 * 86400
    token_keys.rotate(directory, now=clock.now)
    assert len(list((directory / token_keys.RETIRED).iterdir())) == 1


def test_two_rotations_within_a_second(directory: Path, clock: Any) -> None:
    keys = TokenKeys(lambda: read_key_set(directory), lifetime=360, now=clock)
    issuer = TokenIssuer(keys, issuer="me", lifetime=300, now=clock)
    tokens = []
    for _ in range(3):
        tokens.append(issuer.issue([("cpu", APPRAISAL)]))
        token_keys.rotate(directory, now=clock.now)
        keys._checked = float("-inf")  # as another process would, which starts now
    assert len({read_header(token)["kid"] for token in tokens}) == 3
    for token in tokens:
        issuer.verify(token)


def test_a_rotation_that_was_cut_off(directory: Path, clock: Any) -> None:
    keys = TokenKeys(lambda: read_key_set(directory), lifetime=360, now=clock)
    issuer = TokenIssuer(keys, issuer="me", lifetime=300, now=clock)
    token = issuer.issue([("cpu", APPRAISAL)])
    old_key = (directory / "token.key").read_bytes()
    clock.now += 10
    token_keys.rotate(directory, now=clock.now)
    (directory / "token.key").write_bytes(old_key)  # between the two renames
    with pytest.raises(UsageError, match="cut off") as caught:
        read_key_set(directory)
    assert caught.value.code == "bad-config"
    clock.now += 10
    issuer.verify(issuer.issue([("cpu", APPRAISAL)]))  # a running server goes on with what it knew
    token_keys.rotate(directory, now=clock.now)
    clock.now += 10
    for each in (token, issuer.issue([("cpu", APPRAISAL)])):
        issuer.verify(each)


def test_naming_unknown_keys_reads_the_directory_once_a_second(directory: Path, clock: Any) -> None:
    reads = []
    keys = TokenKeys(lambda: reads.append(1) or read_key_set(directory), lifetime=360, now=clock)  # type: ignore[func-returns-value]
    clock.now += 2
    for number in range(50):
        assert keys.find(f"unknown{number}") is None
    assert keys.find(None) is None
    assert len(reads) == 2


# --- tokens of others ("passport" mode)


def foreign(key: SigningKey, now: float, header: dict[str, Any] | None = None, **claims: Any) -> str:
    payload = {"iss": "other", "exp": int(now) + 300, "tee-pubkey": dict(TEE_KEY.public.members), **claims}
    return key.sign({name: value for name, value in payload.items() if value is not None}, header)


def test_another_kbs_that_the_owner_lists(clock: Any) -> None:
    key = SigningKey.generate("ES256")
    certificate = certify(key, clock.now)
    other = make_issuer(clock, key, certificate=certificate)
    token = other.issue([("cpu", APPRAISAL)])
    trusted = TrustedIssuer("other", certificates=(ssl.PEM_cert_to_DER_cert(certificate),), issuer="me")
    ours = make_issuer(clock, trusted=lambda: [trusted])
    verified = ours.verify(token)
    assert (verified.issuer, verified.tee_key.members) == ("other", TEE_KEY.public.members)
    assert "nobody" in refused(make_issuer(clock), token)
    stranger = SigningKey.generate("ES256")
    own_chain = [base64.b64encode(ssl.PEM_cert_to_DER_cert(certify(stranger, clock.now))).decode()]
    for header in (
        read_header(token),  # the listed key in the header, another signature
        {"jwk": stranger.public.to_jwk()},
        {"jwk": {**stranger.public.to_jwk(), "x5c": []}},
        {"jwk": {**stranger.public.to_jwk(), "x5c": read_header(token)["jwk"]["x5c"]}},
        {"jwk": {**stranger.public.to_jwk(), "x5c": ["!"]}},
        {"jwk": {**stranger.public.to_jwk(), "x5c": [1]}},
        {"jwk": {**stranger.public.to_jwk(), "x5c": "x"}},
        {"jwk": {"kty": "oct", "k": "Zm9v", "x5c": read_header(token)["jwk"]["x5c"]}},
        {"jwk": {**stranger.public.to_jwk(), "x5c": own_chain}},
    ):
        refused(ours, foreign(stranger, clock.now, {k: v for k, v in header.items() if k not in ("alg", "typ")}, iss="me"))
    clock.now += 10**6 + 1
    assert refused(ours, other.issue([("cpu", APPRAISAL)]))  # the certificate has expired


def test_an_issuer_by_its_key_set(clock: Any, tmp_path: Path) -> None:
    keys = [SigningKey.generate("ES256"), SigningKey.generate("EdDSA")]
    document = {"keys": [{**key.public.to_jwk(), "kid": f"k{number}"} for number, key in enumerate(keys)]}
    document["keys"] += [{"kty": "oct", "k": "Zm9v", "kid": "weak"}, {**keys[0].public.to_jwk(), "use": "enc", "kid": "enc"}]
    (tmp_path / "jwks.json").write_text(json.dumps(document))
    files = TrustedIssuerFiles("other", None, tmp_path / "jwks.json", "other", wire.KEY_POINTERS)
    trusted = TrustedIssuers((files,), now=clock)
    ours = make_issuer(clock, trusted=trusted)
    for number, key in enumerate(keys):
        assert ours.verify(foreign(key, clock.now, {"kid": f"k{number}"})).issuer == "other"
    now = clock.now
    confused = keys[0].public.to_pem().replace(b"-----", b"")  # PyJWT itself refuses to sign with a whole PEM
    for token in (
        foreign(keys[0], now),
        foreign(keys[0], now, {"kid": "k1"}),
        foreign(keys[0], now, {"kid": "enc"}),
        foreign(keys[0], now, {"kid": "weak"}),
        foreign(keys[0], now, {"kid": ["k0"]}),
        foreign(keys[0], now, {"kid": "k0", "jwk": keys[0].public.to_jwk()}),
        foreign(keys[0], now, {"kid": "k0"}, iss="somebody"),
        foreign(keys[0], now, {"kid": "k0"}, exp=None),
        foreign(keys[0], now, {"kid": "k0"}, exp=True),
        foreign(keys[0], now, {"kid": "k0"}, exp=int(now) - 100),
        foreign(keys[0], now, {"kid": "k0"}, nbf=int(now) + 100),
        foreign(keys[0], now, {"kid": "k0"}, nbf="now"),
        foreign(keys[0], now, {"kid": "k0", "crit": ["x"]}),
        foreign(keys[0], now, {"kid": "k0"}, **{"tee-pubkey": None}),
        jwt.encode({"exp": int(now) + 60}, confused, algorithm="HS256", headers={"kid": "k0"}),
        jwt.encode({"exp": int(now) + 60}, None, algorithm="none", headers={"kid": "k0"}),  # type: ignore[arg-type]
    ):
        refused(ours, token)
    # the other rotates; a broken file changes nothing
    late = SigningKey.generate("ES256")
    for text in ("{", json.dumps({"keys": [{**late.public.to_jwk(), "kid": "late"}]})):
        (tmp_path / "jwks.json").write_text(text)
        clock.now += 6
        (ours.verify if text == "{" else lambda token: refused(ours, token))(foreign(keys[0], clock.now, {"kid": "k0"}))
    assert ours.verify(foreign(late, clock.now, {"kid": "late"})).issuer == "other"


def test_an_issuer_whose_files_stay_away_is_trusted_no_more(clock: Any, tmp_path: Path) -> None:
    """An owner who takes a key set away means it; a file that is written anew is gone for a moment only."""
    key, path, said = SigningKey.generate("ES256"), tmp_path / "jwks.json", []
    good = json.dumps({"keys": [{**key.public.to_jwk(), "kid": "k0"}]})
    path.write_text(good)
    files = TrustedIssuerFiles("other", None, path, None, wire.KEY_POINTERS)
    ours = make_issuer(clock, trusted=TrustedIssuers((files,), now=clock, report=lambda *words: said.append(words)))

    def verify() -> str | None:
        clock.now += 6
        return ours.verify(foreign(key, clock.now, {"kid": "k0"})).issuer

    for text in (None, json.dumps({"keys": []})):
        path.unlink() if text is None else path.write_text(text)
        assert verify() == "other"
        clock.now += trusted_issuers.GRACE_SECONDS
        refused(ours, foreign(key, clock.now, {"kid": "k0"}))
        assert [name for name, _ in said] == ["other"]
        path.write_text(good)
        assert verify() == "other"
        said.clear()


def test_deprecated_rsa_keys_in_tokens(clock: Any) -> None:
    members = {**TeeKey.generate("RSA").public.members, "alg": "RSA1_5"}
    evidence = {"runtime_data_claims": {"tee-pubkey": members}}
    key = SigningKey.generate("ES256")
    token = make_issuer(clock, key).issue([("cpu", Appraisal(APPRAISAL.policy, {"hardware": 2}, {}, evidence))])
    assert "not usable" in refused(make_issuer(clock, key), token)
    assert make_issuer(clock, key, rsa1_5=True).verify(token).tee_key.algorithm == "RSA1_5"
