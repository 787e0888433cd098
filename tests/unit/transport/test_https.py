"""HTTPS to a pinned server: real TLS, a server whose every byte the test chooses."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from enclave_cc.crypto.jws import SigningKey
from enclave_cc.crypto.self_signed import make_certificate
from enclave_cc.errors import EnclaveCcError, EnvironmentFault, PeerError, UsageError
from enclave_cc.transport.https import Codes, HttpsClient

Answer = Callable[[ssl.SSLSocket, bytes], None]


class Identity:
    """A TLS server's key and certificate."""

    def __init__(self, directory: Path, name: str, hosts: list[str], *, until: int | None = None) -> None:
        now = int(time.time())
        key = SigningKey.generate("ES256").to_pem()
        pem = make_certificate(key, common_name=name, hosts=hosts, not_before=now - 1000, not_after=until or now + 1000)
        self.pem = pem.decode()
        self.key_path, self.certificate_path = directory / f"{name}.key", directory / f"{name}.crt"
        self.key_path.write_bytes(key)
        self.certificate_path.write_bytes(pem)

    def context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.certificate_path, self.key_path)
        return context


class Server:
    """Accepts connections; `answer` gets each request's head and body."""

    def __init__(self, identity: Identity, answer: Answer) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"https://127.0.0.1:{self.listener.getsockname()[1]}"
        self.connections = 0
        self.requests: list[bytes] = []
        self._context = identity.context()
        self._answer = answer
        self._open: list[socket.socket] = []
        self._thread = threading.Thread(target=self._accept)
        self._thread.start()
        self._workers: list[threading.Thread] = []

    def _accept(self) -> None:
        while True:
            try:
                plain, _ = self.listener.accept()
            except OSError:
                return
            worker = threading.Thread(target=self._serve, args=(plain,))
            worker.start()
            self._workers.append(worker)

    def _serve(self, plain: socket.socket) -> None:
        try:
            plain.settimeout(10)
            with self._context.wrap_socket(plain, server_side=True) as tls:
                self.connections += 1
                self._open.append(tls)
                while request := read_request(tls):
                    self.requests.append(request)
                    self._answer(tls, request)
        except OSError:
            plain.close()

    def close(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        for opened in self._open:
            with suppress(OSError):
                opened.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        for worker in self._workers:
            worker.join()


def read_request(tls: ssl.SSLSocket) -> bytes:
    data = b""
    while b"\r\n\r\n" not in data:
        piece = tls.recv(65536)
        if not piece:
            return b""
        data += piece
    head, _, body = data.partition(b"\r\n\r\n")
    size = next((int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")), 0)
    while len(body) < size:
        body += tls.recv(65536)
    return head + b"\r\n\r\n" + body


def reply(body: bytes, extra: str = "", status: str = "200 OK") -> Answer:
    def answer(tls: ssl.SSLSocket, _request: bytes) -> None:
        tls.sendall(f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{extra}\r\n".encode() + body)

    return answer


@pytest.fixture(scope="module")
def identity(tmp_path_factory: pytest.TempPathFactory) -> Identity:
    return Identity(tmp_path_factory.mktemp("tls"), "server", ["127.0.0.1"])


@pytest.fixture
def serve(identity: Identity) -> Iterator[Callable[..., Server]]:
    servers: list[Server] = []

    def start(answer: Answer, by: Identity | None = None) -> Server:
        servers.append(Server(by or identity, answer))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@contextmanager
def client(server: Server | str, pem: str | None, deadline: float = 5, codes: Codes | None = None) -> Iterator[HttpsClient]:
    made = HttpsClient(server if isinstance(server, str) else server.url, certificate_pem=pem, deadline=deadline, codes=codes)
    yield made
    made.close()


def refused(call: Callable[[], object]) -> EnclaveCcError:
    with pytest.raises(EnclaveCcError) as caught:
        call()
    return caught.value


def test_request_and_answer(serve: Callable[..., Server], identity: Identity) -> None:
    server = serve(reply(b"hello", "Set-Cookie: a=1; Path=/\r\nSet-Cookie: kbs-session-id=abc; Expires=x\r\nX-Y: Z\r\n"))
    with client(server, identity.pem) as http:
        answer = http.request("POST", "/path?q=1", b"body", {"X-A": "b"})
        assert (answer.status, answer.body) == (200, b"hello")
        assert (answer.header("x-y"), answer.header("absent")) == ("Z", None)
        assert (answer.cookie("kbs-session-id"), answer.cookie("none")) == ("abc", None)
    (request,) = server.requests
    assert request.startswith(b"POST /path?q=1 HTTP/1.1\r\n")
    assert request.endswith(b"\r\n\r\nbody")
    assert b"X-A: b\r\n" in request


def test_connections_are_kept_and_renewed(serve: Callable[..., Server], identity: Identity) -> None:
    server = serve(reply(b"x"))
    with client(server, identity.pem) as http:
        for _ in range(3):
            http.request("GET", "/")
        assert server.connections == 1
        for opened in server._open:  # the server ends the idle connection; the client must not fail for it
            opened.shutdown(socket.SHUT_RDWR)
        assert http.request("GET", "/").status == 200
        assert server.connections == 2
    once = HttpsClient(server.url, certificate_pem=identity.pem, deadline=5, keep_alive=False)
    once.request("GET", "/")
    once.request("GET", "/")
    assert server.connections == 4


def test_a_url_prefix_is_kept(serve: Callable[..., Server], identity: Identity) -> None:
    server = serve(reply(b""))
    with client(server.url + "/base/", identity.pem) as http:
        http.request("GET", "/x")
    assert server.requests[0].startswith(b"GET /base/x ")


def test_any_status_is_an_answer(serve: Callable[..., Server], identity: Identity) -> None:
    server = serve(reply(b"no", status="404 Not Found"))
    with client(server, identity.pem) as http:
        assert http.request("GET", "/").status == 404


def test_redirects_are_not_followed(serve: Callable[..., Server], identity: Identity) -> None:
    server = serve(reply(b"", "Location: https://127.0.0.1:1/\r\n", status="302 Found"))
    with client(server, identity.pem) as http:
        assert http.request("GET", "/").status == 302
    assert len(server.requests) == 1


# --- identity


def test_another_certificate_than_pinned(serve: Callable[..., Server], identity: Identity, tmp_path: Path) -> None:
    other = Identity(tmp_path, "other", ["127.0.0.1"])
    with client(serve(reply(b"x")), other.pem) as http:
        assert refused(lambda: http.request("GET", "/")).code == "kbs-identity"
    with client(serve(reply(b"x")), other.pem, codes=Codes(identity="registry-failed")) as http:
        assert refused(lambda: http.request("GET", "/")).code == "registry-failed"


def test_without_a_pin_the_systems_cas_decide(serve: Callable[..., Server]) -> None:
    with client(serve(reply(b"x")), None) as http:
        assert refused(lambda: http.request("GET", "/")).code == "kbs-identity"


def test_the_pinned_certificate_itself_needs_no_matching_name(serve: Callable[..., Server], tmp_path: Path) -> None:
    named = Identity(tmp_path, "elsewhere", ["kbs.example"])
    server = serve(reply(b"x"), named)
    with client(server, named.pem) as http:
        assert http.request("GET", "/").body == b"x"
        http.request("GET", "/")
    assert server.connections == 1


def test_a_pinned_ca_vouches_for_its_names_only(serve: Callable[..., Server], tmp_path: Path) -> None:
    from cryptography import x509
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

    ca = Identity(tmp_path, "ca", [])
    ca_key = load_pem_private_key(ca.key_path.read_bytes(), None)
    ca_certificate = x509.load_pem_x509_certificate(ca.certificate_path.read_bytes())
    for name, hosts, good in (("right", ["127.0.0.1"], True), ("wrong", ["kbs.example"], False)):
        leaf = Identity(tmp_path, name, hosts)
        own = x509.load_pem_x509_certificate(leaf.certificate_path.read_bytes())
        builder = (
            x509.CertificateBuilder()
            .subject_name(own.subject)
            .issuer_name(ca_certificate.subject)
            .public_key(own.public_key())
            .serial_number(7)
            .not_valid_before(own.not_valid_before_utc)
            .not_valid_after(own.not_valid_after_utc)
            .add_extension(own.extensions.get_extension_for_class(x509.SubjectAlternativeName).value, critical=False)
        )
        leaf.certificate_path.write_bytes(builder.sign(ca_key, SHA256()).public_bytes(Encoding.PEM))  # type: ignore[arg-type]
        with client(serve(reply(b"x"), leaf), ca.pem) as http:
            if good:
                assert http.request("GET", "/").body == b"x"
            else:
                assert refused(lambda http=http: http.request("GET", "/")).code == "kbs-identity"  # type: ignore[misc]


def test_an_expired_pin(serve: Callable[..., Server], tmp_path: Path) -> None:
    old = Identity(tmp_path, "old", ["127.0.0.1"], until=int(time.time()) - 10)
    with client(serve(reply(b"x"), old), old.pem) as http:
        error = refused(lambda: http.request("GET", "/"))
    assert error.code == "kbs-identity"
    assert "expired" in error.what


def test_a_server_without_tls(identity: Identity) -> None:
    listener = socket.create_server(("127.0.0.1", 0))

    def answer() -> None:
        plain, _ = listener.accept()
        plain.recv(1000)
        plain.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        plain.close()

    thread = threading.Thread(target=answer)
    thread.start()
    with client(f"https://127.0.0.1:{listener.getsockname()[1]}", identity.pem) as http:
        assert refused(lambda: http.request("GET", "/")).code == "kbs-identity"
    thread.join()
    listener.close()


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:1", "https://", "127.0.0.1:1", "https://u:p@h", "https://h/?q", "file:///etc/passwd"]
)
def test_urls_that_are_not_https(url: str, identity: Identity) -> None:
    with pytest.raises(UsageError) as wrong:
        HttpsClient(url, certificate_pem=identity.pem, deadline=1)
    assert wrong.value.code == "bad-config"


@pytest.mark.parametrize("pem", ["", "nonsense", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"])
def test_pins_that_are_not_pem(pem: str) -> None:
    with pytest.raises(UsageError):
        HttpsClient("https://127.0.0.1:1", certificate_pem=pem, deadline=1)


# --- broken, slow and hostile servers


def test_nobody_listens(identity: Identity) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with client(f"https://127.0.0.1:{port}", identity.pem) as http:
        error = refused(lambda: http.request("GET", "/"))
    assert isinstance(error, EnvironmentFault)
    assert error.code == "kbs-unreachable"


def test_no_such_host(identity: Identity) -> None:
    with client("https://host.invalid:1", identity.pem) as http:
        assert refused(lambda: http.request("GET", "/")).code == "kbs-unreachable"


def test_an_answer_larger_than_allowed(serve: Callable[..., Server], identity: Identity) -> None:
    with client(serve(reply(bytes(5000))), identity.pem) as http:
        error = refused(lambda: http.request("GET", "/", max_body=4999))
        assert isinstance(error, PeerError)
        assert error.code == "too-large"
        assert len(http.request("GET", "/", max_body=5000).body) == 5000


@pytest.mark.parametrize(
    "raw", [b"nonsense\r\n\r\n", b"HTTP/1.1 abc\r\n\r\n", b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 200 + b"\r\n"]
)
def test_answers_that_are_not_http(serve: Callable[..., Server], identity: Identity, raw: bytes) -> None:
    with client(serve(lambda tls, _: tls.sendall(raw)), identity.pem) as http:
        assert refused(lambda: http.request("GET", "/")).code == "kbs-protocol"


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nshort",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel",
    ],
)
def test_a_connection_that_ends_inside_the_answer(serve: Callable[..., Server], identity: Identity, raw: bytes) -> None:
    def cut(tls: ssl.SSLSocket, _request: bytes) -> None:
        tls.sendall(raw)
        tls.shutdown(socket.SHUT_RDWR)

    with client(serve(cut), identity.pem) as http:
        assert refused(lambda: http.request("GET", "/")).code == "kbs-unreachable"


@pytest.mark.parametrize("drip", [b"", b"HTTP/1.1 200 OK\r\nA: ", b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n"])
def test_a_dripping_server_cannot_stretch_the_deadline(serve: Callable[..., Server], identity: Identity, drip: bytes) -> None:
    stop = threading.Event()

    def answer(tls: ssl.SSLSocket, _request: bytes) -> None:
        tls.sendall(drip)
        while drip and not stop.wait(0.1):
            tls.sendall(b"x")
        stop.wait(5)

    with client(serve(answer), identity.pem, deadline=0.6) as http:
        start = time.monotonic()
        error = refused(lambda: http.request("GET", "/"))
        assert error.code == "deadline"
        assert time.monotonic() - start < 1.5
    stop.set()


def test_a_server_that_never_shakes_hands(identity: Identity) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        with client(f"https://127.0.0.1:{listener.getsockname()[1]}", identity.pem, deadline=0.3) as http:
            assert refused(lambda: http.request("GET", "/")).code == "deadline"


def test_many_threads_share_a_client(serve: Callable[..., Server], identity: Identity) -> None:
    server = serve(lambda tls, request: reply(request.split(b" ")[1])(tls, request))
    wrong: list[object] = []
    with client(server, identity.pem) as http:

        def work(number: int) -> None:
            for index in range(10):
                path = f"/{number}/{index}"
                if http.request("GET", path).body != path.encode():
                    wrong.append(path)

        threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []
    assert server.connections <= 20
