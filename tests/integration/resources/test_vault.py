"""KV versions 1 and 2 of a real OpenBao: the suite, credentials, and a server that is sealed, killed or says no."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from openbao import OpenBao
from resource_store import A, B, Reopen, ResourceStoreSuite, names, refused

from enclave_cc.crypto.secret import Secret
from enclave_cc.owner.resources.locks import PathLocks
from enclave_cc.owner.resources.origin import Origin
from enclave_cc.owner.resources.store import ResourceStore
from enclave_cc.owner.resources.vault_client import VaultClient
from enclave_cc.owner.resources.vault_kv1 import VaultObjects
from enclave_cc.owner.resources.vault_kv2 import VaultStore
from enclave_cc.owner.resources.vault_login import AppRole, Credentials, GivenToken, Login
from enclave_cc.owner.resources.versioned import VersionedStore
from enclave_cc.wire.rcar.uri import ResourcePath

Connect = Callable[..., VaultClient]
# What docs/guides/resources.md tells owners to grant: no less is needed, no more is used.
POLICY = """
path "two/data/e/*" { capabilities = ["create", "update", "read"] }
path "two/metadata/e" { capabilities = ["list"] }
path "two/metadata/e/*" { capabilities = ["read", "list", "patch"] }
path "two/destroy/e/*" { capabilities = ["update"] }
path "one/e" { capabilities = ["list"] }
path "one/e/*" { capabilities = ["create", "update", "read", "delete", "list"] }
"""


@pytest.fixture
def connect(bao: OpenBao, tmp_path: Path) -> Iterator[Connect]:
    """Clients of the shared server; the root token unless other credentials are given."""
    clients: list[VaultClient] = []

    def make(credentials: Credentials | None = None, *, server: OpenBao = bao, deadline: float = 10, **options: Any) -> VaultClient:
        if credentials is None:
            path = tmp_path / f"token-{server.port}"
            path.write_text(server.root_token + "\n")
            credentials = GivenToken(Origin(file=path))
        client = VaultClient(server.address, ca_pem=server.ca_pem, tokens=Login(credentials), deadline=deadline, **options)
        clients.append(client)
        return client

    yield make
    for client in clients:
        client.close()


@pytest.fixture
def base() -> str:
    return "e/" + os.urandom(6).hex()


def kv2(client: VaultClient, base: str, locks: Path) -> VaultStore:
    return VaultStore(client, "two", base, PathLocks(locks))


def kv1(client: VaultClient, base: str, locks: Path) -> VersionedStore:
    return VersionedStore(VaultObjects(client, f"one/{base}", PathLocks(locks)), None)


class TestVersionTwo(ResourceStoreSuite):
    """The second store has locks of its own, as one on another machine: check-and-set alone keeps versions apart."""

    @pytest.fixture
    def store(self, connect: Connect, base: str, tmp_path: Path) -> ResourceStore:
        return kv2(connect(), base, tmp_path / "locks")

    @pytest.fixture
    def reopen(self, connect: Connect, base: str, tmp_path: Path) -> Reopen:
        return lambda: kv2(connect(), base, tmp_path / "others-locks")


class TestVersionOne(ResourceStoreSuite):
    @pytest.fixture
    def store(self, connect: Connect, base: str, tmp_path: Path) -> ResourceStore:
        return kv1(connect(), base, tmp_path / "locks")

    @pytest.fixture
    def reopen(self, connect: Connect, base: str, tmp_path: Path) -> Reopen:
        return lambda: kv1(connect(), base, tmp_path / "locks")


# KV version 2 beside other tools


def test_what_other_tools_put_in_is_read(bao: OpenBao, connect: Connect, base: str, tmp_path: Path) -> None:
    store = kv2(connect(), base, tmp_path)
    bao.send("POST", f"two/data/{base}/{A}", {"data": {"value": "aGVsbG8="}})
    bao.send("POST", f"two/data/{base}/{B}", {"data": {"password": "CANARY"}})
    bao.send("POST", f"two/data/{base}/not a/resource/path", {"data": {"value": "aGVsbG8="}})
    bao.send("POST", f"two/data/{base}/top", {"data": {"value": "aGVsbG8="}})
    assert store.get(A).value == Secret(b"hello")
    assert [(str(info.path), info.size) for info in store.list().items] == [(str(A), 5), (str(B), 0)]
    error = refused(lambda: store.get(B))
    assert error.code == "store-failed"
    assert "CANARY" not in str(error)
    assert store.put(A, Secret(b"ours")) == 2
    bao.send("DELETE", f"two/data/{base}/{A}")  # the soft deletion of `bao kv delete`
    assert refused(lambda: store.get(A)).code == "not-found"
    assert store.history(A)[0].removed is not None
    bao.send("POST", f"two/undelete/{base}/{A}", {"versions": [2]})
    assert store.get(A).value == Secret(b"ours")


def test_listing_reads_no_value(bao: OpenBao, connect: Connect, base: str, tmp_path: Path) -> None:
    """A token that may read metadata alone lists, filters and tells the history."""
    store = kv2(connect(), base, tmp_path)
    store.put(A, Secret(b"CANARY"), tags={"team": "red"}, author="alice")
    bao.send("PUT", "sys/policies/acl/metadata", {"policy": f'path "two/metadata/{base}*" {{ capabilities = ["read", "list"] }}'})
    made = bao.send("POST", "auth/token/create", {"policies": ["metadata"]}).document
    (tmp_path / "t").write_text(made["auth"]["client_token"])
    blind = kv2(connect(GivenToken(Origin(file=tmp_path / "t"))), base, tmp_path)
    (info,) = blind.list(tags={"team": "red"}).items
    assert (info.size, info.author, dict(info.tags)) == (6, "alice", {"team": "red"})
    assert blind.history(A)[0].author == "alice"
    assert refused(lambda: blind.get(A)).code == "store-denied"


@pytest.mark.parametrize("tags", [None, {"k": "new"}])
def test_a_writer_killed_before_it_had_mirrored_is_healed(
    connect: Connect, base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tags: dict[str, str] | None
) -> None:
    store = kv2(connect(), base, tmp_path)
    store.put(A, Secret(b"1"), tags={"k": "old"}, author="alice")
    with monkeypatch.context() as patch:
        patch.setattr(VaultStore, "_mirror", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            store.put(A, Secret(b"12"), tags=tags, author="bob")
    for look in ("list", "put"):
        again = kv2(connect(), base, tmp_path)
        if look == "put":
            again.put(A, Secret(b"123"), author="carol")
        (info,) = again.list().items
        expected = ("bob", 2) if look == "list" else ("carol", 3)
        assert (info.author, info.version, dict(info.tags)) == (*expected, tags or {"k": "old"})


def test_an_answer_lost_on_its_way_makes_no_second_version(
    connect: Connect, base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The write is done, the answer does not come: the repetition meets its own write and takes it for what it is."""
    client = connect()
    store, original, lost = kv2(client, base, tmp_path), client._http.request, []

    def lose_once(method: str, path: str, *arguments: Any, **options: Any) -> Any:
        answer = original(method, path, *arguments, **options)
        if method == "POST" and "/data/" in path and not lost:
            lost.append(path)
            from enclave_cc.errors import EnvironmentFault

            raise EnvironmentFault("store-unreachable", "reset")
        return answer

    monkeypatch.setattr(client._http, "request", lose_once)
    assert store.put(A, Secret(b"1")) == 1
    assert len(lost) == 1
    assert store.get(A).version == 1


# credentials


def test_the_documented_policy_is_enough(bao: OpenBao, connect: Connect, base: str, tmp_path: Path) -> None:
    bao.send("PUT", "sys/policies/acl/kbs", {"policy": POLICY})
    made = bao.send("POST", "auth/token/create", {"policies": ["kbs"], "no_default_policy": True}).document
    (tmp_path / "t").write_text(made["auth"]["client_token"])
    for store in (
        kv1(connect(GivenToken(Origin(file=tmp_path / "t"))), base, tmp_path),
        kv2(connect(GivenToken(Origin(file=tmp_path / "t"))), base, tmp_path),
    ):
        for number in range(18):
            store.put(A, Secret(b"1"), tags={"a": str(number)})
        store.tag(A, {"b": "2"})
        assert names(store) == [str(A)]
        assert store.get(A).value == Secret(b"1")
        store.delete(A)
        assert store.put(A, Secret(b"2")) == 19
        outside = (kv2 if isinstance(store, VaultStore) else kv1)(
            connect(GivenToken(Origin(file=tmp_path / "t"))), "elsewhere", tmp_path
        )
        for act in (lambda s: s.get(A), lambda s: s.put(A, Secret(b"x")), lambda s: s.list()):
            assert refused(lambda act=act, s=outside: act(s)).code == "store-denied"


def make_role(bao: OpenBao, directory: Path, **settings: Any) -> AppRole:
    if bao.send("GET", "auth/approle/role").status == 404 and "approle/" not in bao.send("GET", "sys/auth").data:
        bao.send("POST", "sys/auth/approle", {"type": "approle"})
    bao.send("PUT", "sys/policies/acl/kbs", {"policy": POLICY})
    bao.send("POST", "auth/approle/role/kbs", {"token_policies": ["kbs"], **settings})
    role = bao.send("GET", "auth/approle/role/kbs/role-id").data["role_id"]
    secret = bao.send("POST", "auth/approle/role/kbs/secret-id", {}).data["secret_id"]
    (directory / "role").write_text(role)
    (directory / "secret").write_text(secret + "\n")
    return AppRole(Origin(file=directory / "role"), Origin(file=directory / "secret"))


def accessors(bao: OpenBao) -> set[str]:
    return set(bao.client.request("GET", "auth/token/accessors", query={"list": "true"}).data["keys"])


def test_app_role_logs_in_once_and_renews(bao: OpenBao, connect: Connect, base: str, tmp_path: Path) -> None:
    role = make_role(bao, tmp_path, token_ttl="20s", token_max_ttl="1h")
    clock = [0.0]
    before = accessors(bao)
    client = VaultClient(bao.address, ca_pem=bao.ca_pem, tokens=(login := Login(role, now=lambda: clock[0])), deadline=10)
    store = kv2(client, base, tmp_path)
    store.put(A, Secret(b"1"))
    first = login._lease
    assert len(accessors(bao) - before) == 1
    clock[0] = 11  # past the half of its life: the next use renews
    store.get(A)
    assert login._expires == 31
    assert first is not None and login._lease is not None and login._lease.token == first.token
    clock[0] = 100  # it ended while nobody asked for anything
    store.get(A)
    assert login._lease.token != first.token
    assert len(accessors(bao) - before) == 2
    client.close()


def test_app_role_logs_in_again_when_renewal_nears_its_end(bao: OpenBao, connect: Connect, base: str, tmp_path: Path) -> None:
    role = make_role(bao, tmp_path, token_ttl="10s", token_max_ttl="10s")
    clock = [0.0]
    client = VaultClient(bao.address, ca_pem=bao.ca_pem, tokens=(login := Login(role, now=lambda: clock[0])), deadline=10)
    store = kv2(client, base, tmp_path)
    store.put(A, Secret(b"1"))
    first = login._lease
    time.sleep(3.1)
    clock[0] = 6
    store.get(A)
    assert first is not None and login._lease is not None and login._lease.token != first.token
    client.close()


def test_a_revoked_token_is_replaced(bao: OpenBao, connect: Connect, base: str, tmp_path: Path) -> None:
    login = Login(make_role(bao, tmp_path, token_ttl="1h"))
    client = VaultClient(bao.address, ca_pem=bao.ca_pem, tokens=login, deadline=10)
    store = kv2(client, base, tmp_path)
    store.put(A, Secret(b"1"))
    for _ in range(2):
        assert login._lease is not None
        bao.send("POST", "auth/token/revoke", {"token": login._lease.token.reveal().decode()})
        results: list[object] = []
        threads = [threading.Thread(target=lambda r=results: r.append(store.get(A).value)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert results == [Secret(b"1")] * 4
    client.close()


def test_a_revoked_static_token_is_denied_until_its_file_has_another(
    bao: OpenBao, connect: Connect, base: str, tmp_path: Path
) -> None:
    def make() -> str:
        return str(bao.send("POST", "auth/token/create", {"policies": ["kbs"], "ttl": "1h"}).document["auth"]["client_token"])

    bao.send("PUT", "sys/policies/acl/kbs", {"policy": POLICY})
    path = tmp_path / "t"
    path.write_text(token := make())
    store = kv2(connect(GivenToken(Origin(file=path))), base, tmp_path)
    store.put(A, Secret(b"1"))
    bao.send("POST", "auth/token/revoke", {"token": token})
    error = refused(lambda: store.get(A))
    assert error.code == "store-denied"
    assert token not in str(error) + repr(error)
    path.write_text(make())
    assert store.get(A).value == Secret(b"1")


def test_a_denied_path_makes_no_new_logins(bao: OpenBao, connect: Connect, tmp_path: Path) -> None:
    client = connect(make_role(bao, tmp_path, token_ttl="1h"))
    store = kv2(client, "elsewhere", tmp_path)
    assert refused(lambda: store.get(A)).code == "store-denied"
    before = accessors(bao)
    for _ in range(5):
        assert refused(lambda: store.get(A)).code == "store-denied"
    assert accessors(bao) == before


@pytest.mark.parametrize("wrong", ["role", "secret"])
def test_wrong_app_role(bao: OpenBao, connect: Connect, base: str, tmp_path: Path, wrong: str) -> None:
    role = make_role(bao, tmp_path)
    (tmp_path / wrong).write_text("CANARY-0000")
    error = refused(lambda: kv2(connect(role), base, tmp_path).get(A))
    assert error.code == "store-denied"
    assert "CANARY" not in str(error)


def test_credentials_from_the_environment(
    bao: OpenBao, connect: Connect, base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BAO_TEST_TOKEN", bao.root_token)
    assert kv2(connect(GivenToken(Origin(variable="BAO_TEST_TOKEN"))), base, tmp_path).put(A, Secret(b"1")) == 1
    for text in ("", "two\nlines", "é"):
        monkeypatch.setenv("BAO_TEST_TOKEN", text)
        assert (
            refused(lambda: kv2(connect(GivenToken(Origin(variable="BAO_TEST_TOKEN"))), base, tmp_path).get(A)).code
            == "store-denied"
        )
    assert refused(lambda: kv2(connect(GivenToken(Origin(file=tmp_path / "absent"))), base, tmp_path).get(A)).code == "store-denied"


def test_a_namespace_is_its_own(bao: OpenBao, connect: Connect, base: str, tmp_path: Path) -> None:
    if bao.send("POST", "sys/namespaces/owner-a", {}).status not in (200, 204):
        pytest.fail("this OpenBao has no namespaces")
    inside = connect(namespace="owner-a")
    inside.request("POST", "sys/mounts/two", {"type": "kv", "options": {"version": "2"}})
    end = time.monotonic() + 20
    while inside.request("GET", "two/config").status != 200:
        assert time.monotonic() < end
    store = kv2(inside, base, tmp_path)
    store.put(A, Secret(b"inside"))
    assert store.get(A).value == Secret(b"inside")
    assert refused(lambda: kv2(connect(), base, tmp_path).get(A)).code == "not-found"
    assert refused(lambda: kv2(connect(namespace="nowhere"), base, tmp_path).get(A)).code in ("store-failed", "store-denied")


# a server in trouble


def test_another_engine_or_none(bao: OpenBao, connect: Connect, base: str, tmp_path: Path) -> None:
    client = connect()
    for store in (
        VaultStore(client, "absent", base, PathLocks(tmp_path)),
        VersionedStore(VaultObjects(client, f"absent/{base}", PathLocks(tmp_path)), None),
    ):
        for act in (
            lambda store=store: store.get(A),
            lambda store=store: store.put(A, Secret(b"1")),
            lambda store=store: store.list(),
        ):
            assert refused(act).code == "store-failed"
    assert refused(lambda: VaultStore(client, "one", base, PathLocks(tmp_path)).put(A, Secret(b"1"))).code == "store-failed"
    assert (
        refused(lambda: VersionedStore(VaultObjects(client, f"two/{base}", PathLocks(tmp_path)), None).put(A, Secret(b"1"))).code
        == "store-failed"
    )


def test_more_than_the_server_stores(connect: Connect, base: str, tmp_path: Path) -> None:
    """Vault's limit may be below ours (1 MiB unless its storage says otherwise; 8 MiB here)."""
    client, value = connect(), Secret(bytes(9 << 20))
    v1 = VersionedStore(VaultObjects(client, f"one/{base}", PathLocks(tmp_path)), None, max_value=1 << 30)
    for store in (v1, VaultStore(client, "two", base, PathLocks(tmp_path), max_value=1 << 30)):
        assert refused(lambda store=store: store.put(A, value)).code == "too-large"
        assert store.put(A, Secret(b"1")) == 1


def test_another_certificate(bao: OpenBao, connect: Connect, base: str, tmp_path: Path) -> None:
    from enclave_cc.crypto import self_signed
    from enclave_cc.crypto.jws import SigningKey

    now = int(time.time())
    other = self_signed.make_certificate(
        SigningKey.generate("ES256").to_pem(), common_name="x", hosts=["127.0.0.1"], not_before=now - 9, not_after=now + 999
    )
    (tmp_path / "t").write_text(bao.root_token)
    client = VaultClient(bao.address, ca_pem=other.decode(), tokens=Login(GivenToken(Origin(file=tmp_path / "t"))), deadline=5)
    error = refused(lambda: kv2(client, base, tmp_path).get(A))
    assert error.code == "store-denied"
    assert bao.root_token not in str(error)


def test_sealed_killed_and_back(connect: Connect, base: str, tmp_path: Path) -> None:
    """A server that is sealed, then killed, then back: each state has its code, and nothing that was put is lost."""
    server = OpenBao(tmp_path / "own")
    try:
        server.mount("one", 1)
        server.mount("two", 2)
        for make in (kv1, kv2):
            store, impatient = (
                make(connect(server=server), base, tmp_path / "l"),
                make(connect(server=server, deadline=1), base, tmp_path / "l"),
            )
            assert store.put(A, Secret(b"1"), tags={"a": "b"}) == 1
            server.seal()
            for act in (
                lambda s=store: s.get(A),
                lambda s=store: s.put(A, Secret(b"2")),
                lambda s=store: s.list(),
                lambda s=store: s.delete(A),
            ):
                assert refused(act).code == "store-sealed"
            server.kill()
            assert refused(lambda s=impatient: s.get(A)).code == "store-unreachable"
            assert refused(lambda s=impatient: s.put(A, Secret(b"2"))).code in ("store-unreachable", "deadline")
            server.start()
            assert refused(lambda s=store: s.get(A)).code == "store-sealed"
            server.unseal()
            assert store.get(A).value == Secret(b"1")
            assert store.put(A, Secret(b"2")) == 2
            assert [dict(info.tags) for info in store.list().items] == [{"a": "b"}]
    finally:
        server.stop()


@pytest.mark.slow
def test_the_server_is_killed_under_writers(connect: Connect, base: str, tmp_path: Path) -> None:
    """kill -9 of the server while two writers put: all that was acknowledged is there, numbers have no second owner."""
    server = OpenBao(tmp_path / "own")
    acknowledged: dict[int, bytes] = {}
    stop = threading.Event()
    faults: list[BaseException] = []
    server.mount("two", 2)
    stores = [kv2(connect(server=server, deadline=30), base, tmp_path / f"l{n}") for n in range(2)]

    def write(number: int) -> None:
        turn = 0
        while not stop.is_set():
            value = f"{number}:{turn}".encode()
            turn += 1
            try:
                version = stores[number].put(A, Secret(value))
                assert version not in acknowledged
                acknowledged[version] = value
            except Exception as error:
                if getattr(error, "code", "") not in ("store-unreachable", "store-sealed", "deadline"):
                    faults.append(error)
                    return

    try:
        threads = [threading.Thread(target=write, args=(n,)) for n in range(2)]
        for thread in threads:
            thread.start()
        for _ in range(3):
            time.sleep(0.5)
            server.kill()
            server.start()
            server.unseal()
        time.sleep(0.5)
        stop.set()
        for thread in threads:
            thread.join()
        assert faults == []
        assert len(acknowledged) > 10
        latest = stores[0].get(A).version
        assert latest >= max(acknowledged)
        for each in stores[0].history(A):
            if each.version in acknowledged:
                assert stores[0].get(A, each.version).value == Secret(acknowledged[each.version])
    finally:
        stop.set()
        server.stop()


def test_nothing_secret_is_shown(bao: OpenBao, connect: Connect, base: str, tmp_path: Path) -> None:
    client = connect()
    store = kv2(client, base, tmp_path)
    store.put(A, Secret(b"CANARY"))
    shown = [
        repr(store.get(A)),
        repr(store.list()),
        repr(store.history(A)),
        repr(client._tokens.__dict__),
        json.dumps(str(store.__dict__)),
    ]
    assert not any("CANARY" in text or bao.root_token in text for text in shown)
    assert ResourcePath.parse("a/b/c") not in [info.path for info in store.list().items]
