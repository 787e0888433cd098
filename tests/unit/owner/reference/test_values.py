from __future__ import annotations

import base64
import json

import pytest

from enclave_cc.errors import PeerError, UsageError
from enclave_cc.owner.reference import rvps, values
from enclave_cc.owner.reference.store import ReferenceStore
from enclave_cc.owner.reference.values import ReferenceValue
from enclave_cc.owner.storage.database import Database

BUNDLE = {
    "role": "agent",
    "libos": "simulated",
    "mr_enclave": "ab" * 32,
    "mr_signer": "cd" * 32,
    "isv_prod_id": 1,
    "isv_svn": 7,
}


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(database: Database, clock: Clock) -> ReferenceStore:
    return ReferenceStore(database, now=clock)


def message(payload: object, **change: object) -> bytes:
    text = base64.b64encode(json.dumps(payload).encode()).decode()
    return json.dumps({"version": "0.1.0", "type": "sample", "payload": text, **change}).encode()


def test_members_come_and_go(store: ReferenceStore) -> None:
    assert store.query("x") is None
    store.add([ReferenceValue("x", "a"), ReferenceValue("x", {"b": 1}), ReferenceValue("y", 5, member=False)])
    assert sorted(map(str, store.query("x"))) == sorted(["a", "{'b': 1}"])
    assert store.query("y") == 5
    store.add([ReferenceValue("x", "a", source={"why": "again"})])
    assert len(store.entries("x")) == 2
    assert store.remove("x", {"b": 1}) == 1
    assert store.query("x") == ["a"]
    assert store.remove("x") == 1
    assert store.query("x") is None
    for value in (None, "a"):
        with pytest.raises(UsageError) as refused:
            store.remove("x", value)
        assert refused.value.code == "not-found"


def test_expiry_is_judged_at_query(store: ReferenceStore, clock: Clock) -> None:
    store.add([ReferenceValue("x", "old", expires=1010), ReferenceValue("x", "new", expires=2000)])
    assert len(store.query("x")) == 2
    clock.now = 1010
    assert store.query("x") == ["new"]
    assert len(store.list()) == 2
    clock.now = 3000
    assert store.query("x") is None


def test_rvps_message_replaces_its_names(store: ReferenceStore) -> None:
    store.add([ReferenceValue("svn", "1"), ReferenceValue("other", "stays")])
    store.replace(rvps.parse_message(message({"svn": ["2", "3"], "major_version": 1, "empty": [], "map": {"a": [1]}})))
    assert store.query("svn") == ["2", "3"]
    assert store.query("major_version") == 1
    assert store.query("empty") == []
    assert store.query("map") == {"a": [1]}
    assert store.query("other") == ["stays"]
    store.replace(rvps.parse_message(message({"svn": "4"})))
    assert store.query("svn") == "4"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        message({}, version="0.2.0"),
        message({}, type="corim"),
        message([]),
        message({"": 1}),
        message({"a b": 1}),
        b'{"version":"0.1.0","type":"sample","payload":"!"}',
        b'{"version":"0.1.0","type":"sample","payload":5}',
    ],
)
def test_broken_rvps_messages(body: bytes) -> None:
    with pytest.raises(PeerError) as refused:
        rvps.parse_message(body)
    assert refused.value.code == "malformed"


def test_bundle_reference() -> None:
    (agent,) = values.parse_bundle_reference(json.dumps(BUNDLE).encode())
    assert (agent.name, agent.value, agent.source["isv_svn"]) == ("sgx_mr_enclave", "ab" * 32, 7)
    (signer,) = values.parse_bundle_reference(json.dumps(BUNDLE).encode(), by_signer=True)
    assert (signer.name, signer.value) == ("sgx_mr_signer", {"mr_signer": "cd" * 32, "isv_prod_id": 1, "min_isv_svn": 7})


def test_an_app_bundle_releases_nothing() -> None:
    """Its value has a name that the default policy does not ask for, however it is added."""
    for by_signer in (False, True):
        (app,) = values.parse_bundle_reference(json.dumps({**BUNDLE, "role": "app"}).encode(), by_signer=by_signer)
        assert app.name == "sgx_app_mr_enclave"


@pytest.mark.parametrize(
    "change",
    [
        {"role": "other"},
        {"role": None},
        {"mr_enclave": "AB" * 32},
        {"mr_enclave": "ab"},
        {"mr_signer": 5},
        {"isv_svn": -1},
        {"isv_svn": True},
        {"isv_prod_id": 65536},
        {"isv_prod_id": "1"},
    ],
)
def test_broken_bundle_references(change: dict[str, object]) -> None:
    with pytest.raises(PeerError):
        values.parse_bundle_reference(json.dumps({**BUNDLE, **change}).encode())


def test_json_form() -> None:
    value = ReferenceValue("x", {"a": 1}, member=False, expires=5, source={"b": "c"})
    assert ReferenceValue.from_json(value.to_json()) == value
    for broken in (
        None,
        {},
        {"name": "x"},
        {"name": 5, "value": 1},
        {"name": "x", "value": 1, "expires": "5"},
        {"name": "x", "value": 1, "expires": -1},
        {"name": "x", "value": 1, "expires": 10**12},  # no date that a listing could show
        {"name": "x", "value": 1, "expires": 1 << 80},  # nor SQLite store
        {"name": "x", "value": 1, "member": 1},
    ):
        with pytest.raises(PeerError):
            ReferenceValue.from_json(broken)
