"""Decision log, policies: by an injected clock."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest

from enclave_cc.errors import UsageError
from enclave_cc.owner.kbs import decisions as module
from enclave_cc.owner.kbs.decisions import DecisionLog, Log
from enclave_cc.owner.kbs.policies import PolicyStore
from enclave_cc.owner.policy.reasons import Reason
from enclave_cc.owner.storage.database import Database

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


def test_a_decision_beside_its_audit_entry(database: Database, clock: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    decisions = DecisionLog(database, Log(stream), now=clock)
    prepared = decisions.prepare_deny("release", "kbs-denied", [Reason("a", 1, 2, "r")], "0123456789abcdef", resource="a/b/c")
    with database.write() as db:
        prepared.insert(db, 42)
    assert stream.getvalue() == ""
    decisions.conclude(prepared, audit=42)
    found = decisions.find("0123456789abcdef")
    assert (found.document["audit"], found.document["resource"], found.stage) == (42, "a/b/c", "release")
    event = json.loads(stream.getvalue())
    assert (event["event"], event["id"], event["audit"]) == ("deny", found.id, 42)
    monkeypatch.setattr(module, "KEPT", 3)
    monkeypatch.setattr(module, "_TRIM_EVERY", 2)
    made = [decisions.allow("attest", tee="sgx").id for _ in range(7)]
    assert [each.id for each in decisions.list()] == made[:-4:-1]


def test_policy_versions(database: Database, clock: Any) -> None:
    policies = PolicyStore(database, now=clock)
    policies.install_defaults()
    policies.install_defaults()
    assert [(state.id, state.version) for state in policies.list()] == [("default_cpu", 1), ("resource-policy", 1)]
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
