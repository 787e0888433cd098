"""Sessions, tokens, admin gate, decision log: by an injected clock."""

from __future__ import annotations

import io
import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import jwt
import pytest

from enclave_cc.crypto.jws import SigningKey
from enclave_cc.errors import PeerError, UsageError
from enclave_cc.owner.kbs.admin import AdminGate, issue_token
from enclave_cc.owner.kbs.decisions import DecisionLog, Log
from enclave_cc.owner.kbs.policies import PolicyStore
from enclave_cc.owner.kbs.sessions import MemorySessions
from enclave_cc.owner.kbs.tokens import LEEWAY, TokenIssuer
from enclave_cc.owner.policy.appraisal import Appraisal
from enclave_cc.owner.policy.reasons import Reason
from enclave_cc.owner.policy.rego import Policy
from enclave_cc.owner.resources.database import Database


class Clock:
    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    made = Database(tmp_path / "kbs.db", create=True)
    yield made
    made.close()


# --- sessions


def test_sessions_end_with_their_lifetime(clock: Clock) -> None:
    sessions = MemorySessions(lifetime=300, now=clock)
    session = sessions.create("sgx")
    assert re.fullmatch(r"[0-9a-f]{32}", session.id)
    assert len(session.nonce) == 44
    clock.now += 299
    accepted = sessions.accept(session.id, "token")
    assert accepted.expires == session.expires  # attesting does not prolong it
    clock.now += 1
    for act in (sessions.find, sessions.take_challenge):
        with pytest.raises(PeerError) as ended:
            act(session.id)
        assert ended.value.code == "unauthenticated"


def test_a_challenge_is_taken_once(clock: Clock) -> None:
    sessions = MemorySessions(lifetime=300, now=clock)
    session = sessions.create("sgx")
    taken: list[str] = []

    def take() -> None:
        try:
            sessions.take_challenge(session.id)
            taken.append("yes")
        except PeerError:
            taken.append("no")

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == ["no"] * 7 + ["yes"]
    sessions.accept(session.id, "token")
    assert sessions.take_challenge(session.id).token == "token"


def test_sessions_are_bounded(clock: Clock) -> None:
    sessions = MemorySessions(lifetime=300, now=clock, limit=10)
    made = [sessions.create("sgx") for _ in range(15)]
    for gone in made[:5]:
        with pytest.raises(PeerError):
            sessions.find(gone.id)
    assert sessions.find(made[-1].id) == made[-1]
    clock.now += 301
    sessions.create("sgx")
    assert len(sessions._sessions) == 1


# --- tokens


def test_tokens(clock: Clock) -> None:
    key = SigningKey.generate("ES256")
    issuer = TokenIssuer(key, certificate_pem=None, issuer="me", lifetime=300, now=clock)
    appraisal = Appraisal(Policy("default_cpu", "package policy"), {"hardware": 2}, {"extra": 1}, {"sgx": {}})
    token = issuer.issue([("cpu", appraisal), ("gpu", appraisal), ("gpu", appraisal)])
    claims = issuer.verify(token)
    assert sorted(claims["submods"]) == ["cpu0", "gpu0", "gpu1"]
    assert claims["submods"]["cpu0"]["ear.status"] == "affirming"
    assert claims["submods"]["cpu0"]["extra"] == 1
    options = {"verify_exp": False, "verify_iat": False}
    assert jwt.decode(token, key.public.to_pem(), algorithms=["ES256"], options=options)["iss"] == "me"  # type: ignore[arg-type]
    clock.now += 300 + LEEWAY - 1
    issuer.verify(token)
    clock.now += 1
    with pytest.raises(PeerError) as ended:
        issuer.verify(token)
    assert ended.value.code == "unauthenticated"


# --- administrators


def test_roles_cover_paths_as_a_whole(clock: Clock) -> None:
    key = SigningKey.generate("EdDSA")
    roles = {"keys": (re.compile(r"/kbs/v0/resource/team-a/.*"),), "all": (re.compile(r"^/kbs/v0/.*$"),)}
    gate = AdminGate(key.public, roles, issuer="enclave-cc", audience="KBS", now=clock)
    token = issue_token(key, "keys", clock.now)
    assert gate.authorize(token, "/kbs/v0/resource/team-a/x/y").role == "keys"
    for path in ("/kbs/v0/resource/team-b/x/y", "/x/kbs/v0/resource/team-a/x", "/kbs/v0/resource-policy"):
        with pytest.raises(PeerError) as forbidden:
            gate.authorize(token, path)
        assert forbidden.value.code == "forbidden"
    assert gate.authorize(issue_token(key, "all", clock.now), "/kbs/v0/resource-policy").role == "all"
    for claims in (
        {"role": "all", "exp": clock.now + 60, "iss": "other", "aud": "KBS"},
        {"role": "all", "exp": clock.now + 60, "iss": "enclave-cc", "aud": ["other"]},
        {"role": "all", "exp": True, "iss": "enclave-cc", "aud": "KBS"},
        {"role": "all", "exp": 10**400, "iss": "enclave-cc", "aud": "KBS"},
        {"role": "all", "exp": clock.now + 60, "nbf": "now", "iss": "enclave-cc", "aud": "KBS"},
    ):
        with pytest.raises(PeerError) as refused:
            gate.authorize(key.sign(claims), "/kbs/v0/resource-policy")
        assert refused.value.code == "unauthenticated"
    clock.now += 301
    with pytest.raises(PeerError):
        gate.authorize(token, "/kbs/v0/resource/team-a/x/y")


# --- decisions and policies


def test_decisions_are_found_and_logged(database: Database, clock: Clock) -> None:
    stream = io.StringIO()
    decisions = DecisionLog(database, Log(stream), now=clock)
    reason = Reason("a", 1, 2, "r", nearest=3, advice="do", because=(Reason("b", None, [1], "q", code="tcb-refused"),))
    denied = decisions.deny("release", "tcb-refused", [reason], resource="resource/a/b/c")
    allowed = decisions.allow("attest", tee="sgx")
    assert decisions.find(denied.id) == denied
    assert denied.to_json()["reasons"][0]["because"][0]["code"] == "tcb-refused"
    assert [found.id for found in decisions.list()] == [allowed.id, denied.id]
    assert [found.id for found in decisions.list(outcome="deny")] == [denied.id]
    events = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [(event["event"], event["id"]) for event in events] == [("deny", denied.id), ("allow", allowed.id)]
    with pytest.raises(UsageError):
        decisions.find("nothing")


def test_policy_versions(database: Database, clock: Clock) -> None:
    policies = PolicyStore(database, now=clock)
    policies.install_defaults()
    policies.install_defaults()
    assert policies.list() == [("default_cpu", 1), ("resource-policy", 1)]
    assert policies.get("resource-policy") is policies.get("resource-policy")
    policies.set("resource-policy", "package policy\ndefault allow := false\n")
    assert policies.get("resource-policy").version == 2
    with pytest.raises(UsageError):
        policies.set("resource-policy", "package policy\nallow if {")
    assert policies.get("resource-policy").version == 2
    assert PolicyStore(database).get("resource-policy").version == 2
    with pytest.raises(UsageError) as absent:
        policies.get("default_gpu")
    assert absent.value.code == "not-found"
