"""The KBS as a service: metrics, rate limits, client certificates, tokens of another KBS, key rotation, collateral by HTTPS."""

from __future__ import annotations

import contextlib
import datetime
import http.client
import json
import re
import socket
import ssl
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "suites"))

import pccs as pccs_server
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from enclave_cc.crypto import jwe
from enclave_cc.crypto.jwk import TeeKey
from enclave_cc.errors import EnclaveCcError
from enclave_cc.owner.reference.values import ReferenceValue
from enclave_cc.transport.https import HttpsClient, Response
from enclave_cc.wire.rcar import binding, messages

from .conftest import MR_ENCLAVE, make_admin_token

PATH = "default/key/service"
VALUE = b"v" * 32


@pytest.fixture
def make(tmp_path: Path, machine: Any, new_kbs: Callable[..., Any]) -> Iterator[Callable[..., Any]]:
    """A KBS whose kbs.toml is changed: text by expression, or appended."""
    made: list[Any] = []

    def start(name: str = "one", *, append: str = "", prepare: Callable[[Any], None] = lambda _: None, **changes: str) -> Any:
        (tmp_path / name).mkdir()
        kbs = new_kbs(tmp_path / name, machine)
        made.append(kbs)
        kbs.admin.set_resource(PATH, VALUE)
        restart(kbs, append=append, prepare=prepare, **changes)
        return kbs

    yield start
    for kbs in made:
        if kbs.process.poll() is None:
            assert kbs.stop() == 0
        assert kbs.events("bug") == []


def restart(kbs: Any, *, append: str = "", prepare: Callable[[Any], None] = lambda _: None, **changes: str) -> None:
    kbs.stop()
    prepare(kbs)
    settings = kbs.directory / "kbs.toml"
    text = settings.read_text()
    for name, value in changes.items():
        text, count = re.subn(rf"(?m)^(# )?{name} = .*$", f"{name} = {value}", text)
        assert count, name
    settings.write_text(text + append)
    kbs.start()


def ask(kbs: Any, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None) -> Response:
    return HttpsClient(kbs.url, certificate_pem=kbs.certificate, deadline=20, keep_alive=False).request(method, path, body, headers)


def attest(kbs: Any, platform: Any) -> tuple[TeeKey, str]:
    """The TEE key and the token of a handshake."""
    key = TeeKey.generate()
    answer = ask(kbs, "POST", f"{messages.PREFIX}/auth", messages.Request("sgx").encode())
    nonce, cookie = messages.Challenge.parse(answer.body).nonce, answer.cookie(messages.COOKIE)
    quote = platform.quote(binding.pad(binding.compute_report_data(nonce, key.public, "")))
    body = messages.Attestation(nonce, key.public, messages.encode_sgx_evidence(quote)).encode()
    answer = ask(kbs, "POST", f"{messages.PREFIX}/attest", body, {"Cookie": f"{messages.COOKIE}={cookie}"})
    assert answer.status == 200, answer.body
    return key, messages.parse_token_answer(answer.body)


def get(kbs: Any, token: str) -> Response:
    return ask(kbs, "GET", f"{messages.PREFIX}/resource/{PATH}", None, {"Authorization": f"Bearer {token}"})


def metrics_of(text: str) -> dict[str, float]:
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in text.splitlines() if line[0] != "#")}


def test_metrics_of_a_round(make: Callable[..., Any], enclave: Any) -> None:
    kbs = make(log_requests="true")
    client = kbs.client(enclave)
    assert client.get(f"kbs:///{PATH}") == VALUE
    with pytest.raises(EnclaveCcError):
        client.get("kbs:///default/key/absent-canary")
    client.close()
    answer = ask(kbs, "GET", "/metrics")
    assert answer.header("content-type") == "text/plain; version=0.0.4; charset=utf-8"
    values = metrics_of(answer.body.decode())
    route = f"{messages.PREFIX}/resource/{{repository}}/{{type}}/{{tag}}"
    assert values[f'kbs_http_requests_total{{route="{route}",status="200"}}'] == 1
    assert values[f'kbs_http_requests_total{{route="{route}",status="404"}}'] == 1
    assert values['kbs_attestation_successes_total{tee_type="sgx"}'] == 1
    assert values["kbs_auth_successes_total"] == values["kbs_resource_reads_total"] == 1
    assert values["kbs_policy_approvals_total"] == values["kbs_policy_evaluations_total"] == 2
    for stage in ("verify", "appraise", "sign", "policy", "fetch", "encrypt", "audit"):
        assert values[f'kbs_stage_duration_seconds_count{{stage="{stage}"}}'] >= 1
    assert b"canary" not in answer.body
    # Each answer names its request, as the log does.
    missing = get(kbs, "x")
    ident = missing.header("x-request-id")
    assert ident is not None
    assert {event["event"] for event in kbs.events() if event.get("request") == ident} >= {"request", "refused"}
    assert all("canary" not in json.dumps(event) for event in kbs.events("request"))


def test_metrics_at_an_address_of_their_own_and_of_all_workers(make: Callable[..., Any], enclave: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    kbs = make()
    kbs.stop()
    settings = kbs.directory / "kbs.toml"
    settings.write_text(settings.read_text().replace('# listen = "127.0.0.1:9464"', f'listen = "127.0.0.1:{port}"'))
    kbs.words = ["--workers", "2"]
    kbs.start()
    for _ in range(6):
        with contextlib.closing(kbs.client(enclave)) as client:
            assert client.get(f"kbs:///{PATH}") == VALUE
    assert ask(kbs, "GET", "/metrics").status == 404

    def scrape(path: str = "/metrics") -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        connection.request("GET", path)
        answer = connection.getresponse()
        body = answer.read()
        connection.close()
        return answer.status, body

    for _ in range(4):  # whichever worker answers
        status, body = scrape()
        assert (status, metrics_of(body.decode())["kbs_auth_successes_total"]) == (200, 6)
    assert scrape("/kbs/v0/admin/decisions")[0] == 404


def test_an_address_that_is_refused_too_often_waits(make: Callable[..., Any], enclave: Any) -> None:
    kbs = make(refusal_rate="1", refusal_burst="5")
    answers = [get(kbs, "x") for _ in range(8)]
    assert [answer.status for answer in answers] == [401] * 5 + [429] * 3
    assert 1 <= int(answers[-1].header("retry-after") or "") <= 2
    assert messages.Problem.parse(answers[-1].body).code == "rate-limited"
    assert ask(kbs, "GET", "/metrics").status == 429
    assert ask(kbs, "GET", "/healthz").status == ask(kbs, "GET", "/readyz").status == 200
    time.sleep(1.2)
    assert metrics_of(ask(kbs, "GET", "/metrics").body.decode())['kbs_http_rate_limited_total{limit="refusals"}'] >= 3


def test_an_administrator_who_asks_too_often_waits(make: Callable[..., Any], enclave: Any) -> None:
    kbs = make(admin_rate="1", admin_burst="3")
    headers = {"Authorization": f"Bearer {make_admin_token(kbs)}"}
    statuses = [ask(kbs, "GET", f"{messages.PREFIX}/admin/roots", None, headers).status for _ in range(5)]
    assert statuses == [200] * 3 + [429] * 2
    other = {"Authorization": f"Bearer {make_admin_token(kbs, sub='another')}"}
    assert ask(kbs, "GET", f"{messages.PREFIX}/admin/roots", None, other).status == 200
    with contextlib.closing(kbs.client(enclave)) as client:  # attesters are served meanwhile
        assert client.get(f"kbs:///{PATH}") == VALUE


def test_a_client_may_ask_before_it_sends(make: Callable[..., Any]) -> None:
    """Expect: 100-continue, which is answered once the token was verified; a client that then goes away is no bug."""
    kbs = make()
    context = ssl.create_default_context(cadata=kbs.certificate)
    context.verify_flags |= ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN
    host, port = kbs.url.removeprefix("https://").split(":")
    head = (
        f"POST {messages.PREFIX}/resource/default/key/expected HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n"
        f"Authorization: Bearer {make_admin_token(kbs)}\r\nContent-Length: 4\r\n\r\n"
    ).encode()
    for sends in (True, False):
        with socket.create_connection((host, int(port)), 10) as plain, context.wrap_socket(plain, server_hostname=host) as tls:
            tls.sendall(head)
            assert tls.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
            if sends:
                tls.sendall(b"body")
                assert tls.recv(1000).startswith(b"HTTP/1.1 200 ")
    assert kbs.admin.get_resource("default/key/expected") == b"body"


def make_authority(directory: Path) -> tuple[Path, Path]:
    """(authority's certificate, client's certificate with its key), as files."""
    now = datetime.datetime.now(datetime.UTC)
    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(2)]
    names = [x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)]) for name in ("authority", "alice")]
    pems = []
    for number, (key, name) in enumerate(zip(keys, names, strict=True)):
        made = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(names[0])
            .public_key(key.public_key())
            .serial_number(number + 1)
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(hours=1))
            .add_extension(x509.BasicConstraints(ca=number == 0, path_length=None), critical=True)
            .sign(keys[0], hashes.SHA256())
        )
        private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        pems.append((made.public_bytes(serialization.Encoding.PEM), private))
    (directory / "authority.pem").write_bytes(pems[0][0])
    (directory / "alice.pem").write_bytes(pems[1][0] + pems[1][1])
    return directory / "authority.pem", directory / "alice.pem"


def test_client_certificates_for_administrators(make: Callable[..., Any], enclave: Any, tmp_path: Path) -> None:
    authority, alice = make_authority(tmp_path)
    (tmp_path / "other").mkdir()
    _, stranger = make_authority(tmp_path / "other")
    kbs = make(client_ca=json.dumps(str(authority)))

    def call(certificate: Path | None, path: str = "/admin/roots", token: str | None = None) -> int:
        context = ssl.create_default_context(cadata=kbs.certificate)
        context.verify_flags |= ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN
        if certificate is not None:
            context.load_cert_chain(certificate)
        connection = http.client.HTTPSConnection(kbs.url.removeprefix("https://"), timeout=10, context=context)
        with contextlib.closing(connection):
            connection.request("GET", messages.PREFIX + path, None, {"Authorization": f"Bearer {token or make_admin_token(kbs)}"})
            return connection.getresponse().status

    assert call(alice) == 200
    assert call(None) == 401
    assert call(alice, token=make_admin_token(None)) == 401  # the certificate alone is not enough
    with pytest.raises((ssl.SSLError, OSError)):
        call(stranger)
    with contextlib.closing(kbs.client(enclave)) as client:  # attesters have none
        assert client.get(f"kbs:///{PATH}") == VALUE


@pytest.mark.parametrize("by", ["certificates", "jwks"])
def test_a_token_of_another_kbs(make: Callable[..., Any], enclave: Any, tmp_path: Path, by: str) -> None:
    """ "Passport" mode: attested at one KBS, served by another that lists it."""
    issuer = make("issuer")
    key, token = attest(issuer, enclave)
    server = make("server")
    assert get(server, token).status == 401
    if by == "certificates":
        trust = f'certificates = "{issuer.directory / "token.crt"}"'
    else:
        (tmp_path / "jwks.json").write_bytes(ask(issuer, "GET", "/.well-known/jwks.json").body)
        trust = f'jwks = "{tmp_path / "jwks.json"}"\ncertificates = "{issuer.directory / "token.crt"}"'
    restart(server, append=f"\n[token.trusted.issuer]\n{trust}\n")
    answer = get(server, token)
    assert answer.status == 200
    assert jwe.decrypt(answer.body, key).reveal() == VALUE
    (decision,) = server.admin.list_decisions(outcome="allow", limit=1)
    assert decision["token_issuer"] == "issuer"
    assert get(issuer, attest(server, enclave)[1]).status == 401  # which does not list the server


def test_a_rotation_of_the_token_key(make: Callable[..., Any], enclave: Any) -> None:
    kbs = make()
    _, before = attest(kbs, enclave)
    (old,) = json.loads(ask(kbs, "GET", "/.well-known/jwks.json").body)["keys"]
    assert "signed by" in kbs.cli("kbs", "token", "rotate").stdout
    rows = json.loads(kbs.cli("kbs", "token", "ls", "--json").stdout)
    assert [row["retired"] is None for row in rows] == [True, False]
    end = time.monotonic() + 20
    while rows[0]["kid"] != json.loads(ask(kbs, "GET", "/.well-known/jwks.json").body)["keys"][0]["kid"]:
        assert time.monotonic() < end
        time.sleep(0.2)
    _, after = attest(kbs, enclave)
    assert get(kbs, before).status == get(kbs, after).status == 200
    published = json.loads(ask(kbs, "GET", "/.well-known/jwks.json").body)["keys"]
    assert [key["kid"] for key in published] == [rows[0]["kid"], old["kid"]]
    restart(kbs)
    assert get(kbs, before).status == get(kbs, after).status == 200


def test_collateral_by_https(make: Callable[..., Any], machine: Any, platform_of: Callable[..., Any], tmp_path: Path) -> None:
    """A root without stored collateral, whose platforms a PCCS knows."""
    from enclave_cc.simulator.platform import Platform

    other = Platform.create(tmp_path / "other")
    (tmp_path / "root.pem").write_text(other.root_certificate_pem())
    with pccs_server.running(tmp_path) as service:
        (tmp_path / "pccs.crt").write_text(service.certificate)

        def prepare(kbs: Any) -> None:
            settings = kbs.directory / "kbs.toml"
            added = f'[collateral]\nurl = "{service.url}"\ncertificate = "{tmp_path / "pccs.crt"}"'
            settings.write_text(settings.read_text().replace("[collateral]", added).replace("retry = 30", "retry = 1"))
            done = kbs.cli("kbs", "root", "add", "fetched", "--certificate", str(tmp_path / "root.pem"), "--simulated")
            assert "[collateral]" in done.stdout

        kbs = make(prepare=prepare)
        platform = platform_of(on=other)
        kbs.admin.add_reference_values([ReferenceValue("sgx_mr_enclave", MR_ENCLAVE.hex())])
        with contextlib.closing(kbs.client(platform)) as client, pytest.raises(EnclaveCcError) as refused:
            client.get(f"kbs:///{PATH}")
        assert refused.value.code == "collateral-refused"
        assert kbs.events("collateral-service")
        service.add(other.collateral(int(time.time())))
        time.sleep(1.1)
        asked = len(service.requests)
        for _ in range(3):
            with contextlib.closing(kbs.client(platform)) as client:
                assert client.get(f"kbs:///{PATH}") == VALUE
        assert len(service.requests) == asked + 4  # one bundle for all
    with contextlib.closing(kbs.client(platform)) as client:  # and none when the service is gone
        assert client.get(f"kbs:///{PATH}") == VALUE
