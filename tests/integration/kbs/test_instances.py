"""Several KBS processes on one directory and one database, SQLite or PostgreSQL: one service."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from enclave_cc.crypto.jwk import TeeKey
from enclave_cc.crypto.jws import SigningKey
from enclave_cc.errors import EnclaveCcError
from enclave_cc.owner.kbs.client import AdminClient
from enclave_cc.owner.reference.values import ReferenceValue
from enclave_cc.transport.https import HttpsClient, Response
from enclave_cc.wire.rcar import binding, messages

PATH, VALUE = "default/key/one", b"v" * 32
DENY_ALL = "package policy\n\nimport rego.v1\n\ndefault allow := false\n"


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def first(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, machine: Any, new_kbs: Any) -> Iterator[Any]:
    url = None
    if request.param == "postgresql":
        server = request.getfixturevalue("postgresql")
        url = server.url(server.create_database())
    kbs = new_kbs(tmp_path_factory.mktemp("instances"), machine, database=url)
    admin(kbs).set_resource(PATH, VALUE)
    yield kbs
    assert kbs.stop() == 0


@pytest.fixture
def start(first: Any, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Another process beside `first`."""
    started: list[Any] = []

    def start_one(*words: str) -> Any:
        made = replace(first, log=tmp_path / f"log{len(started)}", process=None, url="", clients=[], words=words)
        started.append(made)
        made.start()
        return made

    yield start_one
    for each in started:
        for client in each.clients:
            client.close()
        if each.process.poll() is None:
            each.stop()
        each.process.stdout.close()


def admin(kbs: Any) -> AdminClient:
    """Of this instance; `kbs.url` in the directory names the one that started last."""
    key = SigningKey.from_pem((kbs.directory / "admin.key").read_bytes())
    return AdminClient(kbs.url, certificate_pem=kbs.certificate, key=key)


class Attester:
    """Speaks RCAR by hand, each step with whatever instance."""

    def __init__(self, platform: Any) -> None:
        self.platform = platform
        self.key = TeeKey.generate()
        self.cookie = self.nonce = ""

    def ask(self, kbs: Any, method: str, path: str, body: bytes | None = None) -> Response:
        http = HttpsClient(kbs.url, certificate_pem=kbs.certificate, deadline=20, keep_alive=False)
        headers = {"Cookie": f"{messages.COOKIE}={self.cookie}"} if self.cookie else {}
        return http.request(method, f"/kbs/v0/{path}", body, headers)

    def auth(self, kbs: Any) -> None:
        answer = self.ask(kbs, "POST", "auth", messages.Request("sgx").encode())
        self.nonce, self.cookie = messages.Challenge.parse(answer.body).nonce, answer.cookie(messages.COOKIE) or ""

    def attestation(self) -> bytes:
        quote = self.platform.quote(binding.pad(binding.compute_report_data(self.nonce, self.key.public, "")))
        return messages.Attestation(self.nonce, self.key.public, messages.encode_sgx_evidence(quote), "").encode()

    def attest(self, kbs: Any, body: bytes | None = None) -> Response:
        return self.ask(kbs, "POST", "attest", body or self.attestation())

    def get(self, kbs: Any) -> int:
        return self.ask(kbs, "GET", f"resource/{PATH}").status


def test_each_step_with_another_instance(first: Any, start: Callable[..., Any], enclave: Any) -> None:
    instances = [first, start(), start()]
    for number in range(6):
        attester = Attester(enclave)
        attester.auth(instances[number % 3])
        assert attester.attest(instances[(number + 1) % 3]).status == 200
        assert [attester.get(each) for each in instances] == [200, 200, 200]


def test_an_answer_counts_once_wherever_it_goes(first: Any, start: Callable[..., Any], enclave: Any) -> None:
    second = start()
    accepted = Attester(enclave)
    accepted.auth(first)
    body = accepted.attestation()
    token = json.loads(accepted.attest(first, body).body)["token"]
    # As upstream: an attested session answers with its token and looks at nothing.
    assert json.loads(accepted.attest(second, body).body)["token"] == token
    denied = Attester(enclave)
    denied.auth(first)
    body = denied.attestation()
    assert denied.attest(second, body[:-40] + body[-40:].replace(b'"', b"'")).status == 400  # malformed: nothing was judged
    other = Attester(enclave)
    other.auth(first)
    assert denied.attest(second, other.attestation()).status == 401  # another session's nonce
    for each in (first, second):
        assert denied.attest(each, body).status == 401
        assert denied.get(each) == 401


def test_sessions_survive_the_instance_they_began_on(first: Any, start: Callable[..., Any], enclave: Any) -> None:
    second = start()
    opened, attested = Attester(enclave), Attester(enclave)
    opened.auth(second)
    attested.auth(second)
    assert attested.attest(second).status == 200
    second.stop(signal.SIGKILL)
    assert attested.get(first) == 200
    assert opened.attest(first).status == 200
    assert opened.get(first) == 200


def test_a_challenge_for_evidence_that_is_refused_elsewhere(first: Any, start: Callable[..., Any], enclave: Any) -> None:
    settings = first.directory / "kbs.toml"
    before = settings.read_text()
    settings.write_text(before.replace('tees = ["sgx"]', 'tees = ["sgx", "sample"]'))
    try:
        lenient = start()
    finally:
        settings.write_text(before)
    attester = Attester(enclave)
    answer = attester.ask(lenient, "POST", "auth", messages.Request("sample").encode())
    attester.nonce, attester.cookie = messages.Challenge.parse(answer.body).nonce, answer.cookie(messages.COOKIE) or ""
    assert attester.attest(first).status == 401


def test_a_change_holds_everywhere_once_it_is_acknowledged(first: Any, start: Callable[..., Any], enclave: Any) -> None:
    second = start()
    attester = Attester(enclave)
    attester.auth(first)
    attester.attest(first)
    allow = admin(first).get_policy("release")["text"]
    name = "sgx_mr_enclave"
    for _ in range(5):
        admin(first).set_policy("release", DENY_ALL)
        assert attester.get(second) == 403
        admin(second).set_policy("release", allow)
        assert attester.get(first) == 200
    (known,) = [value for value in admin(first).list_reference_values() if value.name == name]
    for _ in range(5):
        admin(second).remove_reference_value(name)
        fresh = Attester(enclave)
        fresh.auth(first)
        fresh.attest(first)
        assert fresh.get(first) == 403
        admin(first).add_reference_values([ReferenceValue(name, known.value)])
        fresh = Attester(enclave)
        fresh.auth(second)
        fresh.attest(second)
        assert fresh.get(second) == 200


def test_writers_on_all_instances_lose_nothing(first: Any, start: Callable[..., Any]) -> None:
    instances = [first, start()]
    failed: list[str] = []

    def write(number: int) -> None:
        owner = admin(instances[number % 2])
        try:
            for turn in range(10):
                owner.set_resource(f"default/many/{turn}", bytes([number]) * 100)
        except EnclaveCcError as error:
            failed.append(str(error))

    threads = [threading.Thread(target=write, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    versions = [row["version"] for row in admin(first).list_resources("default/many/")]
    assert versions == [6] * 10


# --- the end


class Steady:
    """Asks for a resource again and again on connections that it keeps, and counts what got no answer.

    A connection may be refused, or closed in its handshake: then the next instance is asked. A request that was sent must be
    answered.
    """

    def __init__(self, instances: list[Any], attester: Attester, threads: int) -> None:
        self.answered = 0
        self.lost: list[str] = []
        self._urls = [each.url for each in instances]
        self._context = ssl.create_default_context(cadata=instances[0].certificate)
        self._request = f"GET /kbs/v0/resource/{PATH} HTTP/1.1\r\nHost: x\r\nCookie: {messages.COOKIE}={attester.cookie}\r\n\r\n"
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(n,)) for n in range(threads)]

    def __enter__(self) -> Steady:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)

    def _run(self, number: int) -> None:
        while not self._stop.is_set():
            number += 1
            host, _, port = self._urls[number % len(self._urls)].removeprefix("https://").partition(":")
            try:
                plain = socket.create_connection((host, int(port)), 20)
                tls = self._context.wrap_socket(plain, server_hostname=host)
            except OSError:
                time.sleep(0.01)
                continue
            with tls, tls.makefile("rb") as stream:
                while not self._stop.is_set() and self._ask(tls, stream):
                    time.sleep(0.005)

    def _ask(self, tls: ssl.SSLSocket, stream: Any) -> bool:
        try:
            tls.sendall(self._request.encode())
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                line = stream.readline()
                if not line:
                    raise ConnectionError(f"closed after {head!r}")
                head += line
            size = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
            assert len(stream.read(size)) == size
            assert head.startswith(b"HTTP/1.1 200 "), head
        except (OSError, AssertionError) as error:
            self.lost.append(repr(error))
            return False
        self.answered += 1
        return b"connection: close" not in head.lower()


def attested(kbs: Any, enclave: Any) -> Attester:
    attester = Attester(enclave)
    attester.auth(kbs)
    assert attester.attest(kbs).status == 200
    return attester


def test_a_rolling_restart_loses_no_request(first: Any, start: Callable[..., Any], enclave: Any) -> None:
    instances = [start(), start()]
    with Steady(instances, attested(first, enclave), 8) as steady:
        for turn in range(3):
            each = instances[turn % 2]
            time.sleep(0.3)
            assert each.stop() == 0
            each.start()
        time.sleep(0.3)
    assert steady.lost == []
    assert steady.answered > 100


def get(kbs: Any, path: str) -> tuple[int, bytes]:
    answer = HttpsClient(kbs.url, certificate_pem=kbs.certificate, deadline=20, keep_alive=False).request("GET", path, None, {})
    return answer.status, answer.body


def test_a_balancer_learns_of_the_end_before_it_comes(first: Any, start: Callable[..., Any], enclave: Any) -> None:
    settings = first.directory / "kbs.toml"
    before = settings.read_text()
    settings.write_text(before.replace("end_delay = 0 ", "end_delay = 5 "))
    try:
        second = start()
    finally:
        settings.write_text(before)
    attester = attested(second, enclave)
    assert get(second, "/readyz") == (200, b'{"ready": true}')
    second.process.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + 4
    while get(second, "/readyz")[0] == 200 and time.monotonic() < deadline:
        time.sleep(0.05)
    status, body = get(second, "/readyz")
    assert (status, json.loads(body)) == (503, {"ready": False, "code": "draining"})
    assert get(second, "/healthz")[0] == 200
    assert attester.get(second) == 200
    second.process.send_signal(signal.SIGTERM)  # a second one hurries it
    assert second.process.wait(4) == 0


def test_a_lost_database_makes_it_unready_and_not_dead(tmp_path: Path, machine: Any, new_kbs: Any, enclave: Any) -> None:
    from private_postgresql import PrivatePostgresql

    server = PrivatePostgresql()
    try:
        server.start()
        kbs = new_kbs(tmp_path, machine, database=server.url(server.create_database()))
        settings = kbs.directory / "kbs.toml"
        settings.write_text(settings.read_text().replace("connect_timeout = 5 ", "connect_timeout = 1 "))
        kbs.stop()
        kbs.start()
        admin(kbs).set_resource(PATH, VALUE)
        attester = attested(kbs, enclave)
        server.kill()
        status, body = get(kbs, "/readyz")
        assert (status, json.loads(body)) == (503, {"ready": False, "code": "database-unreachable"})
        assert get(kbs, "/healthz")[0] == 200
        assert attester.get(kbs) == 503
        server.start()
        assert get(kbs, "/readyz")[0] == 200
        assert attester.get(kbs) == 200
        assert kbs.stop() == 0
        assert "postgres@" not in kbs.log.read_text()
    finally:
        server.stop()


# --- workers


def workers_of(kbs: Any) -> list[int]:
    done = subprocess.run(["ps", "-o", "pid=", "--ppid", str(kbs.process.pid)], capture_output=True, text=True, check=False)
    return [int(word) for word in done.stdout.split()]


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_workers_serve_one_address_and_are_replaced(first: Any, start: Callable[..., Any], enclave: Any) -> None:
    kbs = start("--workers", "2")
    assert len(workers_of(kbs)) == 2
    before = workers_of(kbs)
    with Steady([kbs], attested(kbs, enclave), 6) as steady:
        kbs.process.send_signal(signal.SIGHUP)
        wait_until(lambda: len(workers_of(kbs)) == 2 and not set(before) & set(workers_of(kbs)))
    assert steady.lost == []
    assert steady.answered > 0
    victim = workers_of(kbs)[0]
    os.kill(victim, signal.SIGKILL)
    wait_until(lambda: victim not in workers_of(kbs) and len(workers_of(kbs)) == 2)
    wait_until(lambda: "worker-ended" in kbs.log.read_text())
    assert attested(kbs, enclave).get(kbs) == 200
    left = workers_of(kbs)
    assert kbs.stop() == 0
    assert not any(Path(f"/proc/{pid}").exists() for pid in left)


def test_workers_end_with_their_parent(first: Any, start: Callable[..., Any]) -> None:
    kbs = start("--workers", "2")
    left = workers_of(kbs)
    kbs.stop(signal.SIGKILL)
    wait_until(lambda: not any(_runs(pid) for pid in left))


def _runs(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def test_workers_that_cannot_start(first: Any, tmp_path: Path) -> None:
    command = [str(Path(sys.executable).parent / "enclave-cc"), "kbs", "serve", "--dir", str(first.directory)]
    taken = subprocess.run(
        [*command, "--workers", "2", "--listen", first.url.removeprefix("https://")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (taken.returncode, taken.stderr.splitlines()[-1].split(":")[0]) == (4, "error environment")
    assert subprocess.run([*command, "--workers", "-1"], capture_output=True, timeout=60, check=False).returncode == 2
