"""Admin tokens and roles: what is let in, and everything that is not."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from enclave_cc.crypto.jws import SigningKey
from enclave_cc.errors import PeerError, UsageError
from enclave_cc.owner.kbs.admin import AdminGate, IdentityProvider, Role, issue_token
from enclave_cc.owner.kbs.admin_settings import AdminSettings
from enclave_cc.owner.kbs.settings import Section

POLICY = "/kbs/v0/resource-policy"


def provider(key: SigningKey, name: str = "owner", **options: Any) -> IdentityProvider:
    return IdentityProvider(name, {key.public.kid: key.public}, **options)


def refusal(gate: AdminGate, token: str | None, method: str = "GET", path: str = POLICY, **options: Any) -> str:
    with pytest.raises(PeerError) as refused:
        gate.authorize(token, method, path, **options)
    return refused.value.code


@pytest.fixture
def key() -> SigningKey:
    return SigningKey.generate("EdDSA")


@pytest.fixture
def gate(key: SigningKey, clock: Any) -> AdminGate:
    roles = {
        "keys": Role(paths=(re.compile(r"/kbs/v0/resource/team-a/.*"),)),
        "all": Role(paths=(re.compile(r"^/kbs/v0/.*$"),)),
        "team-a": Role(resources=("team-a/", "shared/key/one"), actions=frozenset(("list", "read", "write"))),
        "reader": Role(resources=("team-a/",), actions=frozenset(("read",))),
        "auditor": Role(resources=("team-a/", "shared/key/one"), actions=frozenset(("audit",))),
    }
    return AdminGate([provider(key, issuer="enclave-cc", audience="KBS")], roles, now=clock)


def test_expressions_cover_paths_as_a_whole(gate: AdminGate, key: SigningKey, clock: Any) -> None:
    token = issue_token(key, "keys", clock.now)
    assert gate.authorize(token, "POST", "/kbs/v0/resource/team-a/x/y").role == "keys"
    for path in ("/kbs/v0/resource/team-b/x/y", "/x/kbs/v0/resource/team-a/x", POLICY):
        assert refusal(gate, token, "POST", path) == "forbidden"
    assert gate.authorize(issue_token(key, "all", clock.now), "GET", POLICY).role == "all"
    clock.now += 301
    assert refusal(gate, token, "POST", "/kbs/v0/resource/team-a/x/y") == "unauthenticated"


RESOURCE, ADMIN, AUDIT = "/kbs/v0/resource", "/kbs/v0/admin/resources", "/kbs/v0/admin/audit"


@pytest.mark.parametrize(
    ("role", "method", "path", "covered"),
    [
        ("team-a", "POST", f"{RESOURCE}/team-a/x/y", True),
        ("team-a", "DELETE", f"{RESOURCE}/team-a/x/y", True),
        ("team-a", "GET", f"{ADMIN}/team-a/x/y", True),
        ("team-a", "GET", ADMIN, True),
        ("team-a", "POST", f"{RESOURCE}/shared/key/one", True),
        ("team-a", "POST", f"{RESOURCE}/shared/key/two", False),
        ("team-a", "POST", f"{RESOURCE}/shared/key/one2", False),
        ("team-a", "GET", f"{ADMIN}/shared/key/one", True),
        ("team-a", "GET", f"{ADMIN}/shared/key/one/history", True),
        ("team-a", "GET", f"{ADMIN}/shared/key/one2", False),
        ("team-a", "GET", f"{ADMIN}/shared/key/one2/history", False),
        ("team-a", "POST", f"{RESOURCE}/team-ab/x/y", False),
        ("team-a", "POST", f"{RESOURCE}/team-b/x/y", False),
        ("team-a", "GET", f"{ADMIN}/team-b/x/y", False),
        ("team-a", "POST", ADMIN, False),
        ("team-a", "PATCH", f"{RESOURCE}/team-a/x/y", False),
        ("team-a", "POST", POLICY, False),
        ("team-a", "GET", "/kbs/v0/admin/decisions", False),
        ("team-a", "GET", "/kbs/v0/admin/reference-values", False),
        ("reader", "GET", f"{ADMIN}/team-a/x/y", True),
        ("reader", "POST", f"{RESOURCE}/team-a/x/y", False),
        ("reader", "DELETE", f"{RESOURCE}/team-a/x/y", False),
        ("reader", "GET", f"{AUDIT}/checkpoint", False),
        ("reader", "GET", f"{AUDIT}/resources/team-a", False),
        ("auditor", "GET", f"{AUDIT}/checkpoint", True),
        ("auditor", "GET", f"{AUDIT}/consistency", True),
        ("auditor", "GET", f"{AUDIT}/resources/team-a", True),
        ("auditor", "GET", f"{AUDIT}/resources/team-a/x", True),
        ("auditor", "GET", f"{AUDIT}/resources/shared/key/one", True),
        ("auditor", "GET", f"{AUDIT}/resources/shared/key", False),
        ("auditor", "GET", f"{AUDIT}/resources/shared/key/one2", False),
        ("auditor", "GET", f"{AUDIT}/resources/team-ab", False),
        ("auditor", "GET", f"{AUDIT}/resources/team", False),
        ("auditor", "GET", f"{AUDIT}/resources", False),
        ("auditor", "GET", f"{AUDIT}/resources/", False),
        ("auditor", "GET", f"{AUDIT}/log", False),
        ("auditor", "GET", f"{AUDIT}/entries/0", False),
        ("auditor", "GET", AUDIT, False),
        ("auditor", "POST", f"{AUDIT}/checkpoint", False),
        ("auditor", "GET", f"{ADMIN}/team-a/x/y", False),
        ("auditor", "GET", ADMIN, False),
    ],
)
def test_roles_by_resources(gate: AdminGate, key: SigningKey, clock: Any, role: str, method: str, path: str, covered: bool) -> None:
    token = issue_token(key, role, clock.now)
    if covered:
        scope = gate.authorize(token, method, path).scope
        assert scope.covers_resource("team-a/x/y")
        assert not scope.covers_resource("shared/key/one2")
        assert not scope.covers_resource("team-b/x/y")
    else:
        assert refusal(gate, token, method, path) == "forbidden"


def _by_hand(header: dict[str, Any] | str, claims: dict[str, Any] | str, secret: bytes) -> str:
    parts = [
        base64.urlsafe_b64encode((part if isinstance(part, str) else json.dumps(part)).encode()).rstrip(b"=")
        for part in (header, claims)
    ]
    mac = hmac.new(secret, b".".join(parts), hashlib.sha256).digest()
    return b".".join([*parts, base64.urlsafe_b64encode(mac).rstrip(b"=")]).decode()


def test_forged_and_confused_tokens(gate: AdminGate, key: SigningKey, clock: Any) -> None:
    claims = {"role": "all", "exp": int(clock.now) + 60, "iss": "enclave-cc", "aud": "KBS"}
    pem, raw = key.public.to_pem(), base64.urlsafe_b64decode(key.public.to_jwk()["x"] + "=")
    good = key.sign(claims)
    head, body, signature = good.split(".")
    for token in (
        None,
        "",
        "x",
        "a.b.c",
        f"{head}.{body}.",
        f"{head}.{body}",
        f"{head}.{body}.{signature}=",
        f"{head}.{body}.{'B' if signature[0] == 'A' else 'A'}{signature[1:]}",
        f" {good}",
        _by_hand({"alg": "none"}, claims, b"").rsplit(".", 1)[0] + ".",
        _by_hand({"alg": "none"}, claims, b""),
        _by_hand({"alg": "None"}, claims, b""),
        *(_by_hand({"alg": alg}, claims, secret) for alg in ("HS256", "EdDSA", "ES256") for secret in (pem, raw, b"")),
        key.sign(claims, {"crit": ["exp"]}),
        key.sign(claims, {"crit": []}),
        SigningKey.generate("EdDSA").sign(claims, {"kid": key.public.kid}),
        SigningKey.generate("ES256").sign(claims),
        (other := SigningKey.generate("EdDSA")).sign(claims, {"jwk": other.public.to_jwk()}),
        other.sign(claims, {"jku": "https://example.invalid/keys", "x5u": "file:///etc/passwd"}),
        jwt.api_jws.encode(b'{"role":"team-a","role":"all"}', key.to_pem().decode(), algorithm="EdDSA"),
    ):
        assert refusal(gate, token) == "unauthenticated", token
    assert gate.authorize(good, "GET", POLICY).role == "all"
    assert gate.authorize(key.sign(claims, {"kid": key.public.kid}), "GET", POLICY).role == "all"
    assert gate.authorize(key.sign(claims, {"kid": "by another name"}), "GET", POLICY).role == "all"


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"exp": None}, "unauthenticated"),
        ({"exp": True}, "unauthenticated"),
        ({"exp": "9999999999"}, "unauthenticated"),
        ({"exp": 10**400}, "unauthenticated"),
        ({"exp": 1}, "unauthenticated"),
        ({"nbf": "now"}, "unauthenticated"),
        ({"nbf": 4_000_000_000}, "unauthenticated"),
        ({"iss": "other"}, "unauthenticated"),
        ({"iss": None}, "unauthenticated"),
        ({"aud": ["other"]}, "unauthenticated"),
        ({"aud": None}, "unauthenticated"),
        ({"aud": {"KBS": 1}}, "unauthenticated"),
        ({"role": None}, "forbidden"),
        ({"role": ["all"]}, "forbidden"),
        ({"role": {"all": 1}}, "forbidden"),
        ({"role": "All"}, "forbidden"),
        ({"role": ""}, "forbidden"),
    ],
    ids=str,
)
def test_claims(gate: AdminGate, key: SigningKey, clock: Any, change: dict[str, Any], code: str) -> None:
    claims = {"role": "all", "exp": int(clock.now) + 60, "iss": "enclave-cc", "aud": "KBS", **change}
    assert refusal(gate, key.sign({name: value for name, value in claims.items() if value is not None})) == code


def test_several_identity_providers(tmp_path: Path, clock: Any) -> None:
    keys = {"alice": SigningKey.generate("EdDSA"), "ci": SigningKey.generate("ES256")}
    private = rsa.generate_private_key(65537, 2048)
    (tmp_path / "alice.pub").write_bytes(keys["alice"].public.to_pem())
    (tmp_path / "ci.json").write_text(json.dumps({"keys": [{**keys["ci"].public.to_jwk(), "kid": "ci-1"}]}))
    (tmp_path / "idp.pub").write_bytes(private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    table = {
        "public_key": "",
        "identity_providers": {
            "alice": {"public_key": "alice.pub"},
            "ci": {"jwks": "ci.json", "issuer": "https://ci", "audience": "kbs-1"},
            "idp": {"public_key": "idp.pub", "issuer": "https://idp"},
        },
        "roles": {"admin": ["/kbs/v0/.*"]},
        "default_role": "admin",
    }
    settings = AdminSettings.read(Section(table, name="admin", path="kbs.toml"), tmp_path)
    gate = AdminGate([each.load() for each in settings.providers], settings.roles, default_role="admin", now=clock)
    claims = {"exp": int(clock.now) + 60, "sub": "me"}
    found = gate.authorize(keys["alice"].sign(claims), "GET", POLICY)  # an older kbs-client's, without a role
    assert (found.provider, found.role, found.subject) == ("alice", "admin", "me")
    ci = {**claims, "iss": "https://ci", "aud": ["x", "kbs-1"]}
    assert gate.authorize(keys["ci"].sign(ci, {"kid": "ci-1"}), "GET", POLICY).provider == "ci"
    assert gate.authorize(keys["ci"].sign(ci), "GET", POLICY).provider == "ci"
    idp = jwt.encode({**claims, "iss": "https://idp"}, private, algorithm="RS256")
    assert gate.authorize(idp, "GET", POLICY).provider == "idp"
    for token in (
        keys["ci"].sign({**ci, "iss": "https://idp"}),
        keys["ci"].sign({**ci, "aud": "kbs-2"}),
        keys["ci"].sign(claims),
        keys["ci"].sign({**claims, "iss": "https://idp"}),  # one provider cannot speak for another
        jwt.encode({**claims, "iss": "https://ci", "aud": "kbs-1"}, private, algorithm="RS256"),
        jwt.encode({**claims, "iss": "https://idp"}, private, algorithm="PS256"),
    ):
        assert refusal(gate, token) == "unauthenticated"


def test_a_provider_gives_the_roles_that_it_may(tmp_path: Path, clock: Any) -> None:
    """Whoever signs for one team must not make administrators of everything."""
    owner, team = SigningKey.generate("EdDSA"), SigningKey.generate("EdDSA")
    (tmp_path / "admin.pub").write_bytes(owner.public.to_pem())
    (tmp_path / "team.pub").write_bytes(team.public.to_pem())
    table = {
        "identity_providers": {"team": {"public_key": "team.pub", "roles": ["team-a"]}},
        "roles": {"admin": ["/kbs/v0/.*"], "team-a": {"resources": ["team-a/"]}},
        "default_role": "admin",
    }
    settings = AdminSettings.read(Section(table, name="admin", path="kbs.toml"), tmp_path)
    gate = AdminGate([each.load() for each in settings.providers], settings.roles, default_role="admin", now=clock)
    end = int(clock.now) + 60
    assert gate.identify(owner.sign({"exp": end, "role": "admin"})).role == "admin"
    who = gate.identify(team.sign({"exp": end, "role": "team-a"}))
    assert (who.provider, who.role) == ("team", "team-a")
    for claims in ({"role": "admin"}, {}):  # by name, or by default
        assert refusal(gate, team.sign({"exp": end, **claims})) == "forbidden"
    with pytest.raises(PeerError):
        gate.resume(who.subject, "admin", who.provider, who.key)


def test_client_certificates(key: SigningKey, clock: Any) -> None:
    gate = AdminGate([provider(key)], {"all": Role(paths=(re.compile(".*"),))}, client_certificates=True, now=clock)
    token = issue_token(key, "all", clock.now)
    assert refusal(gate, token) == "unauthenticated"
    assert refusal(gate, None, certificate=True) == "unauthenticated"
    assert gate.authorize(token, "GET", POLICY, certificate=True).role == "all"


def test_who_entered_by_a_key_that_was_taken_away_is_out(gate: AdminGate, key: SigningKey, clock: Any) -> None:
    who = gate.identify(issue_token(key, "all", clock.now))
    assert gate.resume(who.subject, who.role, who.provider, who.key) == who
    renewed = AdminGate([provider(SigningKey.generate("EdDSA"))], {"all": Role(paths=(re.compile(".*"),))}, now=clock)
    other = AdminGate([provider(key, "other")], {"all": Role(paths=(re.compile(".*"),))}, now=clock)
    poor = AdminGate([provider(key)], {}, now=clock)
    for changed in (renewed, other, poor):
        with pytest.raises(PeerError) as refused:
            changed.resume(who.subject, who.role, who.provider, who.key)
        assert refused.value.code == "unauthenticated"


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ({"roles": {"a": ["("]}}, "regular expression"),
        ({"roles": {"a": {"resources": ["team-a"]}}}, "REPOSITORY/"),
        ({"roles": {"a": {"resources": ["team-a/key"]}}}, "REPOSITORY/TYPE/"),
        ({"roles": {"a": {"resources": ["team-a/key/one/"]}}}, "REPOSITORY/TYPE/"),
        ({"roles": {"a": {"resources": [""]}}}, "list of texts"),
        ({"roles": {"a": {"resources": ["../"]}}}, "REPOSITORY/"),
        ({"roles": {"a": {"resources": ["a/"], "actions": ["erase"]}}}, "erase"),
        ({"roles": {"a": {"resource": ["a/"]}}}, "no such setting"),
        ({"roles": {"a": 5}}, "not a table"),
        ({"roles": []}, "table"),
        ({"default_role": "nobody"}, "no such role"),
        ({"public_keys": "x"}, "no such setting"),
        ({"identity_providers": {"x": {}}}, "needed"),
        ({"identity_providers": {"x": {"public_key": "a", "roles": ["nobody"]}}}, "no role"),
        ({"identity_providers": {"x": {"public_key": "a", "jwks": "b"}}}, "needed"),
        ({"identity_providers": {"x": {"public_key": "a", "isuer": "b"}}}, "no such setting"),
    ],
    ids=str,
)
def test_mistakes_in_the_configuration(table: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        AdminSettings.read(Section(table, name="admin", path="kbs.toml"), tmp_path)
    assert caught.value.code == "bad-config"
    assert "kbs.toml" in caught.value.what


def test_keys_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "bad").write_text("nonsense")
    for table in (
        {"public_key": "absent"},
        {"public_key": "bad"},
        {"public_key": "", "identity_providers": {"x": {"jwks": "bad"}}},
    ):
        with pytest.raises(UsageError) as caught:
            AdminSettings.read(Section(table, name="admin", path="kbs.toml"), tmp_path).make_gate()
        assert caught.value.code == "bad-config"
