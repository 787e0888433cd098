"""What a request for a resource that is not there may cost the store."""

from __future__ import annotations

import pytest

from enclave_cc.crypto.secret import Secret
from enclave_cc.owner.kbs import absence
from enclave_cc.owner.kbs.absence import explain_absence
from enclave_cc.owner.kbs.rate_limits import Buckets
from enclave_cc.owner.policy.release import Request
from enclave_cc.owner.resources.database_store import DatabaseResourceStore
from enclave_cc.owner.resources.sealing import Keyring
from enclave_cc.owner.storage.database import Database
from enclave_cc.wire.rcar.uri import ResourcePath


def test_attesters_do_not_make_a_store_list_for_each_request(
    database: Database, clock: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = DatabaseResourceStore(database, Keyring([Secret.random(32)]))
    store.put(ResourcePath.parse("default/key/one"), Secret(b"1"))
    looks = []
    monkeypatch.setattr(absence, "_looks", Buckets(absence.LOOKS, clock=clock))  # type: ignore[arg-type]
    monkeypatch.setattr(store, "list", lambda *a, inner=store.list, **k: looks.append(a) or inner(*a, **k))  # type: ignore[func-returns-value]
    found = [explain_absence(store, Request("resource", ("default", "key", "onee"))).nearest for _ in range(1000)]
    assert found[0] == "default/key/one"
    assert found[-1] is None
    assert len(looks) <= absence.LOOKS.burst
    clock.now += 5  # type: ignore[attr-defined]
    assert explain_absence(store, Request("resource", ("default", "key", "onee"))).nearest == "default/key/one"
