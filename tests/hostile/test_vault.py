"""A Vault that lies: no real server answers so. What it may hold are keys, but what it says is outside text."""

from __future__ import annotations

import json
import ssl
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from enclave_cc.crypto import self_signed
from enclave_cc.crypto.jws import SigningKey
from enclave_cc.crypto.secret import Secret
from enclave_cc.errors import EnclaveCcError, EnvironmentFault, UsageError
from enclave_cc.owner.resources.locks import PathLocks
from enclave_cc.owner.resources.origin import Origin
from enclave_cc.owner.resources.store import ResourceStore
from enclave_cc.owner.resources.vault_client import VaultClient
from enclave_cc.owner.resources.vault_kv1 import VaultObjects
from enclave_cc.owner.resources.vault_kv2 import VaultStore
from enclave_cc.owner.resources.vault_login import AppRole, Credentials, GivenToken, Login
from enclave_cc.owner.resources.versioned import VersionedStore
from enclave_cc.wire.rcar.uri import ResourcePath

A = ResourcePath.parse("default/key/a")
TOKEN, VALUE = "CANARY-TOKEN", b"CANARY-VALUE"
Answer = Callable[["Handler"], None]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    answer: Answer
    seen: list[str]

    def do_GET(self) -> None:
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        type(self).seen.append(f"{self.command} {self.path} {self.headers.get('X-Vault-Token')}")
        type(self).answer(self)

    do_POST = do_PATCH = do_DELETE = do_PUT = do_GET

    def send(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None: ...


class Liar:
    """One server whose answer a test sets."""

    def __init__(self, directory: Path) -> None:
        key, now = SigningKey.generate("ES256").to_pem(), int(time.time())
        self.ca = self_signed.make_certificate(
            key, common_name="liar", hosts=["127.0.0.1"], not_before=now - 60, not_after=now + 3600
        ).decode()
        (directory / "liar.pem").write_text(self.ca + key.decode())
        self.handler = type("OwnHandler", (Handler,), {"answer": staticmethod(lambda h: h.send(404, b"{}")), "seen": []})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self.handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(directory / "liar.pem")
        self.server.socket = context.wrap_socket(self.server.socket, server_side=True, do_handshake_on_connect=False)
        self.server.daemon_threads = True
        self.server.handle_error = lambda *_: None  # type: ignore[method-assign]
        self.address = f"https://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02})
        self.thread.start()

    def says(self, answer: Answer) -> None:
        self.handler.answer = staticmethod(answer)  # type: ignore[attr-defined]

    def says_json(self, status: int, document: Any) -> None:
        self.says(lambda handler: handler.send(status, json.dumps(document).encode()))

    @property
    def seen(self) -> list[str]:
        return self.handler.seen  # type: ignore[attr-defined, no-any-return]

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def liar(tmp_path: Path) -> Iterator[Liar]:
    server = Liar(tmp_path)
    yield server
    server.stop()


@pytest.fixture(params=[1, 2])
def store(request: pytest.FixtureRequest, liar: Liar, tmp_path: Path) -> Iterator[ResourceStore]:
    client = connect(liar, tmp_path)
    yield make_store(client, request.param, tmp_path)
    client.close()


def connect(liar: Liar, directory: Path, credentials: Credentials | None = None, deadline: float = 0.7) -> VaultClient:
    (directory / "token").write_text(TOKEN)
    credentials = credentials or GivenToken(Origin(file=directory / "token"))
    return VaultClient(liar.address, ca_pem=liar.ca, tokens=Login(credentials), deadline=deadline)


def make_store(client: VaultClient, version: int, directory: Path) -> ResourceStore:
    locks = PathLocks(directory / "locks", deadline=1)
    if version == 1:
        return VersionedStore(VaultObjects(client, "secret/e", locks), None)
    return VaultStore(client, "secret", "e", locks, deadline=0.5)


ACTS: list[Callable[[ResourceStore], object]] = [
    lambda store: store.get(A),
    lambda store: store.get(A, 1),
    lambda store: store.put(A, Secret(VALUE), tags={"a": "b"}),
    lambda store: store.tag(A, {"a": "b"}),
    lambda store: store.delete(A),
    lambda store: store.list(),
    lambda store: store.history(A),
]


def check_all(store: ResourceStore, *codes: str) -> None:
    """Each call ends soon, with a code of ours, and shows no secret in any part of its exception."""
    for act in ACTS:
        start = time.monotonic()
        with pytest.raises(EnclaveCcError) as caught:
            act(store)
        assert isinstance(caught.value, EnvironmentFault | UsageError)
        assert caught.value.code in codes, (caught.value, act)
        shown = "".join(traceback.format_exception(caught.value)) + str(caught.value)
        assert "CANARY" not in shown
        assert time.monotonic() - start < 60


DEEP = b"[" * 200_000
GARBAGE = [
    b"",
    b"not JSON",
    b"<html>proxy</html>",
    b"[]",
    b"null",
    b'"text"',
    b"{",
    b"\xff\xfe\x00",
    DEEP,
    b'{"data":' + DEEP,
    b"NaN",
    b"1e999",
]


@pytest.mark.parametrize("body", GARBAGE, ids=range(len(GARBAGE)))
def test_garbage_with_status_200(liar: Liar, store: ResourceStore, body: bytes) -> None:
    liar.says(lambda handler: handler.send(200, body))
    check_all(store, "store-failed", "store-denied")


@pytest.mark.parametrize("status", [201, 202, 400, 402, 405, 418, 451, 500, 502, 503, 599, 999])
def test_other_statuses(liar: Liar, store: ResourceStore, status: int) -> None:
    liar.says_json(status, {"errors": [f"no: {TOKEN} {VALUE!r}"]})
    check_all(store, "store-failed", "store-denied", "store-unreachable", "deadline")


_LOOKUP = {"data": {"ttl": 0}}
WRONG = [
    {"data": None},
    {"data": []},
    {"data": {}},
    {"data": {"keys": "x", "head": 5, "data": 5, "metadata": 5, "current_version": "1", "versions": []}},
    {"data": {"head": "CANARY", "keys": {}, "data": {"value": "CANARY!"}, "metadata": {}, "current_version": True, "versions": {}}},
    {
        "data": {
            "head": '{"format":1,"last":1,"tags":{},"doomed":[],"versions":[]}',
            "keys": [None],
            "data": {"value": 7},
            "metadata": {"version": -1, "created_time": "yesterday"},
            "current_version": 1,
            "versions": {"x": {}, "1": {"created_time": "CANARY"}},
        }
    },
    {"data": {"current_version": 1, "versions": {"1": {"created_time": "9999-99-99T00:00:00Z"}}, "custom_metadata": {"a": 1}}},
    {"data": {"current_version": 10**400, "versions": {str(10**30): None}}},
]


@pytest.mark.parametrize("document", WRONG, ids=range(len(WRONG)))
def test_json_of_another_form(liar: Liar, store: ResourceStore, document: Any) -> None:
    """Absent is an answer of some of these; all else is a fault. None is taken for a value."""

    def answer(handler: Handler) -> None:
        document_now = _LOOKUP if "lookup-self" in handler.path else document
        handler.send(200, json.dumps(document_now).encode())

    liar.says(answer)
    for act in ACTS:
        try:
            found = act(store)
        except EnclaveCcError as error:
            assert error.code in ("store-failed", "not-found", "deadline")
            assert "CANARY" not in "".join(traceback.format_exception(error))
        else:
            assert getattr(found, "items", ()) == ()


def test_redirects_are_not_followed(liar: Liar, store: ResourceStore, tmp_path: Path) -> None:
    """The token would go along."""
    (tmp_path / "second").mkdir()
    other = Liar(tmp_path / "second")
    for status in (301, 302, 303, 307, 308):
        liar.says(lambda handler, status=status: handler.send(status, b"", Location=f"{other.address}/v1/x"))  # type: ignore[misc]
        check_all(store, "store-unreachable", "store-denied")
    assert other.seen == []
    other.stop()


def test_huge_and_endless_bodies(liar: Liar, store: ResourceStore) -> None:
    def announce(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(1 << 40))
        handler.end_headers()
        handler.wfile.write(b" " * 100_000)

    def endless(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        while True:
            handler.wfile.write(b"100000\r\n" + b" " * 0x100000 + b"\r\n")

    for answer in (announce, endless):
        liar.says(answer)
        check_all(store, "store-failed", "deadline", "store-unreachable")


def test_slow_answers_end_at_the_deadline(liar: Liar, store: ResourceStore) -> None:
    def drip(handler: Handler) -> None:
        for byte in b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + b" " * 1000:
            handler.wfile.write(bytes([byte]))
            time.sleep(0.05)

    liar.says(drip)
    check_all(store, "deadline", "store-unreachable")


def test_connections_that_break(liar: Liar, store: ResourceStore) -> None:
    def cut(handler: Handler) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{")
        handler.close_connection = True

    def nonsense(handler: Handler) -> None:
        handler.wfile.write(b"\x00\x01\x02 SMTP ready\r\n\r\n")
        handler.close_connection = True

    def silent(handler: Handler) -> None:
        handler.close_connection = True

    for answer in (cut, nonsense, silent):
        liar.says(answer)
        check_all(store, "store-unreachable", "store-failed", "deadline")


def test_names_in_a_listing_lead_nowhere(liar: Liar, store: ResourceStore) -> None:
    names = [
        "..",
        "../",
        "/",
        "",
        "a/../",
        "../../sys/",
        "%2e%2e/",
        "a b/",
        "a\0/",
        "é/",
        "x" * 300 + "/",
        "CANARY\r\nX: y/",
        5,
        None,
    ]

    def answer(handler: Handler) -> None:
        handler.send(200, json.dumps(_LOOKUP if "lookup-self" in handler.path else {"data": {"keys": names}}).encode())

    liar.says(answer)
    try:
        assert store.list().items == ()
    except EnvironmentFault as error:
        assert error.code in ("store-failed", "deadline")
    assert not [line for line in liar.seen if "/.." in line or "%2e" in line or "\0" in line or "sys" in line]


@pytest.mark.parametrize("token", ["", "a\r\nX-Evil: 1", "é", " ", "\0", 7, None])
def test_a_login_that_gives_no_token(liar: Liar, tmp_path: Path, token: object) -> None:
    for name in ("role", "secret"):
        (tmp_path / name).write_text("CANARY-" + name)
    role = AppRole(Origin(file=tmp_path / "role"), Origin(file=tmp_path / "secret"))
    client = connect(liar, tmp_path, role)
    liar.says_json(200, {"auth": {"client_token": token, "lease_duration": 60, "renewable": True}})
    for version in (1, 2):
        check_all(make_store(client, version, tmp_path), "store-failed", "store-denied")
    client.close()


@pytest.mark.parametrize("seconds", [-1, 10**400, "60", None, True, 1.5])
def test_a_lease_that_is_no_number(liar: Liar, tmp_path: Path, seconds: object) -> None:
    for name in ("role", "secret"):
        (tmp_path / name).write_text("CANARY-" + name)
    client = connect(liar, tmp_path, AppRole(Origin(file=tmp_path / "role"), Origin(file=tmp_path / "secret")))
    liar.says_json(200, {"auth": {"client_token": "t", "lease_duration": seconds, "renewable": True}, "data": {}})
    check_all(make_store(client, 2, tmp_path), "store-failed", "store-denied")
    client.close()


def test_without_tls_there_is_no_client(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as refused:
        VaultClient("http://127.0.0.1:8200", ca_pem=None, tokens=Login(GivenToken(Origin(file=tmp_path / "t"))))
    assert refused.value.code == "bad-config"
