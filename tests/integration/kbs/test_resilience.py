"""The KBS under kill -9, slow and huge clients, and an orderly end."""

from __future__ import annotations

import random
import resource
import signal
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from enclave_cc.crypto.jws import SigningKey
from enclave_cc.errors import EnclaveCcError
from enclave_cc.owner.kbs import admin

URI, VALUE = "kbs:///default/key/one", b"v" * 32


@pytest.fixture
def own_kbs(tmp_path: Path, machine: Any, new_kbs: Any) -> Iterator[Any]:
    kbs = new_kbs(tmp_path, machine)
    kbs.admin.set_resource("default/key/one", VALUE)
    yield kbs
    for client in kbs.clients:
        client.close()
    if kbs.process.poll() is None:
        kbs.stop()


def connect(kbs: Any, deadline: float = 10) -> ssl.SSLSocket:
    host, _, port = kbs.url.removeprefix("https://").partition(":")
    context = ssl.create_default_context(cadata=kbs.certificate)
    return context.wrap_socket(socket.create_connection((host, int(port)), deadline), server_hostname=host)


def test_a_killed_kbs_keeps_what_it_acknowledged(own_kbs: Any, enclave: Any) -> None:
    """SIGKILL during a stream of writes, six times; after each start everything acknowledged is there."""
    acknowledged: dict[str, bytes] = {}
    counter = 0
    chance = random.Random(7)
    for _ in range(6):
        timer = threading.Timer(chance.uniform(0.02, 0.3), lambda: own_kbs.process.send_signal(signal.SIGKILL))
        timer.start()
        try:
            owner = own_kbs.admin
            while True:
                counter += 1
                value = bytes(str(counter), "ascii") * chance.randrange(1, 3000)
                owner.set_resource(f"default/kill/{counter % 5}", value)
                acknowledged[f"default/kill/{counter % 5}"] = value
        except EnclaveCcError as error:
            assert error.code == "kbs-unreachable"
        pending = f"default/kill/{counter % 5}"
        timer.join()
        own_kbs.process.wait(10)
        own_kbs.process.stdout.close()
        own_kbs.start()
        for path, expected in acknowledged.items():
            found = own_kbs.admin.get_resource(path)
            assert found in ((expected, value) if path == pending else (expected,))
            acknowledged[path] = found
    assert own_kbs.client(enclave).get(URI) == VALUE


def test_clients_survive_a_restart(own_kbs: Any, enclave: Any) -> None:
    """A session that the new process does not know costs one more handshake, not an error."""
    client = own_kbs.client(enclave)
    assert client.get(URI) == VALUE
    own_kbs.stop(signal.SIGKILL)
    with pytest.raises(EnclaveCcError) as down:
        client.get(URI)
    assert down.value.code == "kbs-unreachable"
    own_kbs.start()
    assert client.get(URI) == VALUE


def test_another_certificate_is_noticed(own_kbs: Any, enclave: Any, kbs: Any) -> None:
    with pytest.raises(EnclaveCcError) as refused:
        type(own_kbs.client(enclave))(own_kbs.url, kbs.certificate, enclave, None, 10).get(URI)
    assert refused.value.code == "kbs-identity"


def test_sigterm_lets_running_requests_end(own_kbs: Any) -> None:
    body = b"x" * 100_000
    key = SigningKey.from_pem((own_kbs.directory / "admin.key").read_bytes())
    token = admin.issue_token(key, "admin", time.time())  # sent by hand, so that the body can be cut in two
    with connect(own_kbs) as tls:
        head = f"Host: x\r\nAuthorization: Bearer {token}\r\nContent-Length: {len(body)}\r\n\r\n"
        tls.sendall(f"POST /kbs/v0/resource/default/key/late HTTP/1.1\r\n{head}".encode() + body[:50_000])
        time.sleep(0.2)
        own_kbs.process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        tls.sendall(body[50_000:])
        assert tls.recv(1000).startswith(b"HTTP/1.1 200 ")
    assert own_kbs.process.wait(10) == 0
    own_kbs.process.stdout.close()
    own_kbs.start()
    assert own_kbs.admin.get_resource("default/key/late") == body


def test_slow_clients_are_let_go_and_others_served(own_kbs: Any, enclave: Any) -> None:
    own_kbs.stop()
    settings = own_kbs.directory / "kbs.toml"
    settings.write_text(settings.read_text().replace("request_deadline = 30", "request_deadline = 1"))
    own_kbs.start()
    silent, dripping, stalled = connect(own_kbs), connect(own_kbs), connect(own_kbs)
    plain = socket.create_connection(tuple(own_kbs.url.removeprefix("https://").split(":")), 10)  # type: ignore[arg-type]
    stalled.sendall(b"POST /kbs/v0/auth HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{")
    gone = False
    start = time.monotonic()
    for _ in range(40):
        try:
            dripping.sendall(b"G")
        except OSError:
            gone = True
            break
        time.sleep(0.1)
    assert gone
    assert time.monotonic() - start < 4
    assert own_kbs.client(enclave).get(URI) == VALUE
    for each in (silent, stalled):
        each.settimeout(5)
        data = b""
        try:
            while piece := each.recv(4096):
                data += piece
        except (ssl.SSLError, OSError):
            pass
        if each is stalled:
            assert data.startswith(b"HTTP/1.1 408 ")
    for each in (silent, dripping, stalled, plain):
        each.close()


def test_idle_connections_do_not_take_all_descriptors(own_kbs: Any, enclave: Any) -> None:
    """A stranger who holds as many connections as the process may have descriptors keeps nobody out: the oldest go."""
    client = own_kbs.client(enclave, deadline=20)  # less than the 30 s after which idle connections end anyway
    resource.prlimit(own_kbs.process.pid, resource.RLIMIT_NOFILE, (128, 128))
    idle = []
    try:
        for _ in range(150):
            idle.append(connect(own_kbs, 1))
    except OSError:  # this one waits to be accepted
        assert len(idle) > 64
    assert client.get(URI) == VALUE
    for each in idle:
        each.close()


def test_bodies_beyond_the_limit(own_kbs: Any) -> None:
    with connect(own_kbs) as tls:
        tls.settimeout(10)
        tls.sendall(b"POST /kbs/v0/auth HTTP/1.1\r\nHost: x\r\nContent-Length: 3000000\r\n\r\n")
        try:
            for _ in range(30):
                tls.sendall(b" " * 100_000)
        except OSError:
            pass
        assert tls.recv(1000).startswith(b"HTTP/1.1 413 ")


def test_an_address_in_use(own_kbs: Any) -> None:
    done = own_kbs.cli("kbs", "serve", "--listen", own_kbs.url.removeprefix("https://"), check=False)
    assert (done.returncode, done.stderr.splitlines()[-1].split(":")[0]) == (4, "error environment")
