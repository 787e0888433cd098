"""Sessions, decision log, policies: by an injected clock."""

from __future__ import annotations

import io
import json
import re
import threading
from typing import Any

import pytest

from enclave_cc.errors import PeerError, UsageError
from enclave_cc.owner.kbs.decisions import DecisionLog, Log
from enclave_cc.owner.kbs.policies import PolicyStore
from enclave_cc.owner.kbs.sessions import MemorySessions
from enclave_cc.owner.policy.reasons import Reason
from enclave_cc.owner.storage.database import Database

# --- sessions


def test_sessions_end_with_their_lifetime(clock: Any) -> None:
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


def test_a_challenge_is_taken_once(clock: Any) -> None:
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


def test_sessions_are_bounded(clock: Any) -> None:
    sessions = MemorySessions(lifetime=300, now=clock, limit=10)
    made = [sessions.create("sgx") for _ in range(15)]
    for gone in made[:5]:
        with pytest.raises(PeerError):
            sessions.find(gone.id)
    assert sessions.find(made[-1].id) == made[-1]
    clock.now += 301
    sessions.create("sgx")
    assert len(sessions._sessions) == 1


# --- decisions and policies


def test_decisions_are_found_and_logged(database: Database, clock: Any) -> None:
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


def test_policy_versions(database: Database, clock: Any) -> None:
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
