"""The registry client against a server that answers as scripted: breaks off, redirects, lies, dawdles."""

from __future__ import annotations

import http.server
import json
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from enclave_cc.crypto.secret import Secret
from enclave_cc.errors import EnvironmentFault, PeerError, UsageError
from enclave_cc.transport import registry as registries
from enclave_cc.transport import registry_session, signature_store
from enclave_cc.transport.connections import Body
from enclave_cc.transport.registry_config import RegistryConfig
from enclave_cc.wire.oci import media_type as media
from enclave_cc.wire.oci.auth import Credentials
from enclave_cc.wire.oci.digest import Digest
from enclave_cc.wire.oci.reference import Reference

CONTENT = bytes(range(256)) * 4096  # 1 MiB
DIGEST = Digest.of(CONTENT)
Answer = Callable[[http.server.BaseHTTPRequestHandler], None]


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, *_: object) -> None:
        """A client that hangs up is what these tests are about."""


class Script:
    """A server on a free port; `answer` handles every request, `seen` keeps method, path and Authorization."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.seen: list[tuple[str, str, str | None]] = []
        self.connections = 0
        script = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                script.connections += 1
                super().setup()

            def handle_any(self) -> None:
                script.seen.append((self.command, self.path, self.headers.get("Authorization")))
                script.answer(self)

            do_GET = do_HEAD = do_PUT = do_POST = handle_any

            def log_message(self, *_: object) -> None:
                pass

        self._server = Server(("127.0.0.1", 0), Handler)
        self.host = f"127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def send(handler: http.server.BaseHTTPRequestHandler, status: int, data: bytes = b"", **headers: str) -> None:
    handler.send_response(status)
    headers.setdefault("Content_Length", str(len(data)))
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    if handler.command != "HEAD":
        handler.wfile.write(data)


@pytest.fixture
def serve() -> Iterator[Callable[[Answer], Script]]:
    scripts: list[Script] = []

    def start(answer: Answer) -> Script:
        scripts.append(Script(answer))
        return scripts[-1]

    yield start
    for script in scripts:
        script.close()


@pytest.fixture
def connect() -> Iterator[Callable[..., registries.Registry]]:
    made: list[registries.Registry] = []

    def make(host: str, **options: object) -> registries.Registry:
        made.append(registries.Registry(host, **{"insecure": True, "deadline": 2.0, **options}))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for registry in made:
        registry.close()


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry_session, "_PAUSE", 0.0)


Serve = Callable[[Answer], Script]
Connect = Callable[..., registries.Registry]


def ranged(handler: http.server.BaseHTTPRequestHandler) -> int:
    return int((handler.headers.get("Range") or "bytes=0-").removeprefix("bytes=").rstrip("-"))


def test_resumes_where_the_connection_broke(serve: Serve, connect: Connect) -> None:
    starts: list[int] = []

    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        start = ranged(handler)
        starts.append(start)
        rest = CONTENT[start:]
        piece = rest[:300_000]
        handler.send_response(206 if start else 200)
        handler.send_header("Content-Length", str(len(rest)))
        if start:
            handler.send_header("Content-Range", f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}")
        handler.end_headers()
        handler.wfile.write(piece)
        if len(piece) < len(rest):
            handler.close_connection = True

    script = serve(answer)
    assert b"".join(connect(script.host).open_blob("a", DIGEST, len(CONTENT))) == CONTENT
    assert starts == [0, 300_000, 600_000, 900_000]


def test_a_server_without_ranges_sends_it_all_again(serve: Serve, connect: Connect) -> None:
    calls = iter([400_000, 700_000, len(CONTENT)])

    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(CONTENT)))
        handler.end_headers()
        handler.wfile.write(CONTENT[: next(calls)])
        handler.close_connection = True

    assert b"".join(connect(serve(answer).host).open_blob("a", DIGEST, len(CONTENT))) == CONTENT


def test_gives_up_when_nothing_comes(serve: Serve, connect: Connect) -> None:
    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "100")
        handler.end_headers()
        handler.close_connection = True

    script = serve(answer)
    with pytest.raises(EnvironmentFault) as caught:
        list(connect(script.host).open_blob("a", DIGEST, 100))
    assert caught.value.code == "registry-unreachable"
    assert len(script.seen) == 6


def test_more_bytes_than_stated_are_refused(serve: Serve, connect: Connect) -> None:
    script = serve(lambda handler: send(handler, 200, CONTENT))
    with pytest.raises(PeerError) as caught:
        list(connect(script.host).open_blob("a", DIGEST, len(CONTENT) - 1))
    assert caught.value.code == "digest-mismatch"


def test_another_range_than_asked_is_refused(serve: Serve, connect: Connect) -> None:
    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        if ranged(handler):
            send(handler, 206, CONTENT, Content_Range="bytes 5-9/10")
            return
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(CONTENT)))
        handler.end_headers()
        handler.wfile.write(CONTENT[:10])
        handler.close_connection = True

    with pytest.raises(PeerError) as caught:
        list(connect(serve(answer).host).open_blob("a", DIGEST, len(CONTENT)))
    assert caught.value.code == "registry-failed"


def test_a_dribbling_server_meets_the_deadline(serve: Serve, connect: Connect) -> None:
    """Each byte arrives within a socket timeout, the answer never does."""

    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        try:
            for _ in range(200):
                handler.wfile.write(b"x")
                handler.wfile.flush()
                time.sleep(0.05)
        except OSError:
            pass

    began = time.monotonic()
    with pytest.raises(EnvironmentFault) as caught:
        connect(serve(answer).host, deadline=0.5).get_blob("a", DIGEST, limit=2000)
    assert caught.value.code == "registry-unreachable"
    assert time.monotonic() - began < 3


def test_the_whole_pull_has_an_end(serve: Serve, connect: Connect) -> None:
    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(CONTENT)))
        handler.end_headers()
        try:
            for at in range(0, len(CONTENT), 1024):
                handler.wfile.write(CONTENT[at : at + 1024])
                time.sleep(0.01)
        except OSError:
            pass

    registry = connect(serve(answer).host)
    with pytest.raises((PeerError, EnvironmentFault)) as caught:
        list(registry.open_blob("a", DIGEST, len(CONTENT), until=time.monotonic() + 0.5))
    assert caught.value.code in {"deadline", "registry-unreachable"}


def test_a_redirect_to_another_host_is_followed_without_the_credential(serve: Serve, connect: Connect) -> None:
    store = serve(lambda handler: send(handler, 200, CONTENT))

    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        if handler.headers.get("Authorization") is None:
            send(handler, 401, WWW_Authenticate='Basic realm="x"')
        else:
            send(handler, 307, Location=f"http://{store.host}/bucket/blob?signature=y")

    script = serve(answer)
    registry = connect(script.host, credentials=Credentials("u", Secret(b"p")))
    assert registry.get_blob("a", DIGEST, limit=len(CONTENT)) == CONTENT
    assert store.seen == [("GET", "/bucket/blob?signature=y", None)]
    assert script.seen[-1][2] == "Basic dTpw"


@pytest.mark.parametrize("location", ["", "ftp://x/y", "http://u:p@127.0.0.1:1/x", "http:///x", "http://[::1/x", "//"])
def test_senseless_redirects_are_refused(serve: Serve, connect: Connect, location: str) -> None:
    script = serve(lambda handler: send(handler, 302, Location=location))
    with pytest.raises((PeerError, EnvironmentFault)) as caught:
        connect(script.host).get_blob("a", DIGEST, limit=10)
    assert caught.value.code in {"registry-failed", "registry-unreachable"}


def test_redirects_end(serve: Serve, connect: Connect) -> None:
    script = serve(lambda handler: send(handler, 302, Location="/again"))
    with pytest.raises(PeerError) as caught:
        connect(script.host).get_blob("a", DIGEST, limit=10)
    assert caught.value.code == "registry-failed"
    assert len(script.seen) == 6


def test_tls_is_never_left() -> None:
    registry = registries.Registry("host.example", deadline=1.0)
    with pytest.raises(PeerError, match="without TLS"):
        registry.resolve(registry.endpoint, "/v2/a", "http://elsewhere/x")


def test_tokens_are_fetched_once_per_scope(serve: Serve, connect: Connect) -> None:
    tokens = serve(lambda handler: send(handler, 200, json.dumps({"token": "t", "expires_in": 300}).encode()))

    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        if handler.headers.get("Authorization") == "Bearer t":
            send(handler, 200, CONTENT)
        else:
            send(handler, 401, WWW_Authenticate=f'Bearer realm="http://{tokens.host}/token?x=1",service="s s"')

    registry = connect(serve(answer).host)
    for _ in range(3):
        registry.get_blob("a/b", DIGEST, limit=len(CONTENT))
    assert [path for _, path, _ in tokens.seen] == ["/token?x=1&scope=repository%3Aa%2Fb%3Apull&service=s+s"]


@pytest.mark.parametrize(
    ("challenge", "code"),
    [
        (None, "registry-denied"),
        ('Basic realm="x"', "registry-denied"),
        ("Negotiate", "registry-failed"),
        ('Bearer realm="ftp://x"', "registry-failed"),
        ("Bearer", "registry-failed"),
        ("=", "malformed"),
    ],
)
def test_what_cannot_be_answered_is_a_denial(serve: Serve, connect: Connect, challenge: str | None, code: str) -> None:
    headers = {"WWW_Authenticate": challenge} if challenge else {}
    script = serve(lambda handler: send(handler, 401, **headers))
    with pytest.raises(PeerError) as caught:
        connect(script.host).get_blob("a", DIGEST, limit=10)
    assert caught.value.code == code


def test_a_refused_password_is_sent_once(serve: Serve, connect: Connect) -> None:
    script = serve(lambda handler: send(handler, 401, WWW_Authenticate='Basic realm="x"'))
    with pytest.raises(PeerError) as caught:
        connect(script.host, credentials=Credentials("u", Secret(b"p"))).get_blob("a", DIGEST, limit=10)
    assert caught.value.code == "registry-denied"
    assert [authorization for _, _, authorization in script.seen] == [None, "Basic dTpw"]


def test_credentials_are_asked_for_only_when_needed(serve: Serve, connect: Connect) -> None:
    asked: list[None] = []

    def credentials() -> Credentials:
        asked.append(None)
        return Credentials("u", Secret(b"p"))

    script = serve(lambda handler: send(handler, 200, CONTENT))
    connect(script.host, credentials=credentials).get_blob("a", DIGEST, limit=len(CONTENT))
    assert asked == []


def test_a_busy_registry_is_asked_again(serve: Serve, connect: Connect) -> None:
    statuses = iter([503, 429, 200])
    script = serve(lambda handler: send(handler, next(statuses), CONTENT))
    assert connect(script.host).get_blob("a", DIGEST, limit=len(CONTENT)) == CONTENT


@pytest.mark.parametrize(
    ("status", "code"), [(403, "registry-denied"), (404, "image-not-found"), (500, "registry-failed"), (503, "registry-failed")]
)
def test_statuses_have_codes_and_the_registrys_words(serve: Serve, connect: Connect, status: int, code: str) -> None:
    said = json.dumps({"errors": [{"code": "X", "message": "it said\nso"}]}).encode()
    script = serve(lambda handler: send(handler, status, said))
    with pytest.raises(PeerError) as caught:
        connect(script.host).get_manifest("a", "t")
    assert caught.value.code == code
    assert "it said\N{REPLACEMENT CHARACTER}so" in caught.value.what


def test_a_manifest_of_another_digest_is_refused(serve: Serve, connect: Connect) -> None:
    script = serve(lambda handler: send(handler, 200, b"{}", Content_Type=media.OCI_MANIFEST))
    assert connect(script.host).get_manifest("a", "t")[2] == Digest.of(b"{}")
    with pytest.raises(PeerError) as caught:
        connect(script.host).get_manifest("a", DIGEST)
    assert caught.value.code == "digest-mismatch"


def test_answers_are_bounded(serve: Serve, connect: Connect) -> None:
    script = serve(lambda handler: send(handler, 200, CONTENT))
    with pytest.raises(PeerError) as caught:
        connect(script.host).get_blob("a", DIGEST, limit=len(CONTENT) - 1)
    assert caught.value.code == "too-large"


def test_connections_are_kept_and_replaced_when_gone(serve: Serve, connect: Connect) -> None:
    script = serve(lambda handler: send(handler, 200, CONTENT))
    registry = connect(script.host)
    for _ in range(3):
        registry.get_blob("a", DIGEST, limit=len(CONTENT))
    assert script.connections == 1

    def hang_up(handler: http.server.BaseHTTPRequestHandler) -> None:
        send(handler, 200, CONTENT)
        handler.close_connection = True  # without saying so in the answer

    script.answer = hang_up
    for _ in range(3):
        assert registry.get_blob("a", DIGEST, limit=len(CONTENT)) == CONTENT
    assert script.connections > 1


def test_threads_share_a_registry(serve: Serve, connect: Connect) -> None:
    registry = connect(serve(lambda handler: send(handler, 200, CONTENT)).host)
    wrong: list[object] = []

    def pull() -> None:
        try:
            for _ in range(5):
                assert b"".join(registry.open_blob("a", DIGEST, len(CONTENT))) == CONTENT
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=pull) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_an_upload_goes_where_the_registry_says(serve: Serve, connect: Connect) -> None:
    stored: dict[str, bytes] = {}

    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        body = handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
        if handler.command == "HEAD":
            send(handler, 404)
        elif handler.command == "POST":
            send(handler, 202, Location="/upload/17?state=s")
        else:
            stored[handler.path] = body
            send(handler, 201)

    script = serve(answer)
    connect(script.host).push_blob("a", DIGEST, Body(lambda: iter((CONTENT[:10], CONTENT[10:])), len(CONTENT)))
    assert stored == {f"/upload/17?state=s&digest={DIGEST.replace(':', '%3A')}": CONTENT}


def test_tags_come_in_pages(serve: Serve, connect: Connect) -> None:
    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        if "last" not in handler.path:
            send(handler, 200, b'{"name":"a","tags":["1","2"]}', Link='</v2/a/tags/list?last=2&n=2>; rel="next"')
        else:
            send(handler, 200, b'{"name":"a","tags":["3"]}')

    assert connect(serve(answer).host).list_tags("a") == ["1", "2", "3"]


def test_referrers_come_from_the_api_or_from_the_tag(serve: Serve, connect: Connect) -> None:
    listed = {"mediaType": media.OCI_MANIFEST, "digest": DIGEST, "size": 5, "artifactType": media.SIGSTORE_BUNDLE}
    index = json.dumps({"schemaVersion": 2, "mediaType": media.OCI_INDEX, "manifests": [listed]}).encode()
    for api in (True, False):

        def answer(handler: http.server.BaseHTTPRequestHandler, api: bool = api) -> None:
            if ("/referrers/" in handler.path) == api:
                send(handler, 200, index, Content_Type=media.OCI_INDEX)
            else:
                send(handler, 404)

        script = serve(answer)
        (found,) = connect(script.host).list_referrers("a", DIGEST)
        assert (found.digest, found.artifact_type) == (DIGEST, media.SIGSTORE_BUNDLE)
        if not api:
            assert script.seen[-1][1] == f"/v2/a/manifests/sha256-{DIGEST.hex}"
    assert connect(serve(lambda handler: send(handler, 404)).host).list_referrers("a", DIGEST) == ()
    assert signature_store.fetch_bundles(connect(serve(lambda handler: send(handler, 404)).host), "a", DIGEST) == []


def test_an_unreachable_registry(connect: Connect) -> None:
    with pytest.raises(EnvironmentFault) as caught:
        connect("127.0.0.1:1").get_manifest("a", "t")
    assert caught.value.code == "registry-unreachable"
    with pytest.raises(EnvironmentFault):
        connect("no-such-host.invalid").get_manifest("a", "t")


@pytest.mark.parametrize(
    "junk", [b"SSH-2.0-x\r\n", b"\0" * 100, b"HTTP/1.1 abc\r\n\r\n", b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 200]
)
def test_what_is_not_http_is_a_coded_error(serve: Serve, connect: Connect, junk: bytes) -> None:
    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.wfile.write(junk)
        handler.close_connection = True

    with pytest.raises(EnvironmentFault) as caught:
        connect(serve(answer).host).get_manifest("a", "t")
    assert caught.value.code == "registry-unreachable"


def test_docker_hub_has_another_name() -> None:
    assert registry_session.parse_host("docker.io", insecure=False).host == "registry-1.docker.io"
    assert str(registry_session.parse_host("h:5000", insecure=True)) == "h:5000"
    assert registry_session.parse_host("[::1]:5000", insecure=True).host == "::1"
    with pytest.raises(UsageError):
        registry_session.parse_host("h:x", insecure=True)


def test_mirrors_come_before_the_registry() -> None:
    config = RegistryConfig(mirrors={"h:1": ("m:2", "m:3/prefix")})
    assert [str(r) for r in config.locations(Reference.parse("h:1/a/b:t"))] == ["m:2/a/b:t", "m:3/prefix/a/b:t", "h:1/a/b:t"]
    assert [str(r) for r in config.locations(Reference.parse("other:1/a"))] == ["other:1/a"]
