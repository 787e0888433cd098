"""HOST-010: the host points the agent at a KBS of its own, which passes the owner's evidence and keys on.

The relay ends the agent's TLS, so that it may answer for policies what it likes; what it must not get is a session of
the owner's KBS under the agent's TEE key, or else the agent opens the owner's image under the host's launch policy.
"""

from __future__ import annotations

import contextlib
import http.server
import json
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from enclave_cc.crypto import self_signed
from enclave_cc.crypto.jws import SigningKey
from enclave_cc.enclave.attest.client import KbsClient
from enclave_cc.errors import PeerError
from enclave_cc.transport.https import HttpsClient
from enclave_cc.wire.rcar import binding
from enclave_cc.wire.rcar.initdata import InitData

URI = "kbs:///default/image-key/relayed"
_PASSED_ON = ("set-cookie", "content-type")


def _make_init_data(certificate: str) -> bytes:
    kbs = f'[token_configs.kbs]\nurl = "https://kbs"\ncert = {json.dumps(certificate)}\n'
    return f'version = "0.1.0"\nalgorithm = "sha256"\n[data]\n"aa.toml" = {json.dumps(kbs)}\n'.encode()


@dataclass
class Relay:
    """The host's KBS. `shown`: what takes the place of the agent's init-data on its way to the owner."""

    url: str
    certificate: str
    shown: Callable[[dict[str, Any]], None] = lambda attestation: None


@pytest.fixture
def relay(kbs: Any, tmp_path: Path) -> Iterator[Relay]:
    key, now = SigningKey.generate("ES256").to_pem(), int(time.time())
    certificate = self_signed.make_certificate(
        key, common_name="relay", hosts=("127.0.0.1",), not_before=now - 60, not_after=now + 3600
    )
    (tmp_path / "relay.pem").write_bytes(key + certificate)
    owner = HttpsClient(kbs.url, certificate_pem=kbs.certificate, deadline=20)
    made = Relay("", certificate.decode())

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, format: str, *arguments: object) -> None:
            pass

        def _pass_on(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if self.path.endswith("/attest"):
                attestation = json.loads(body)
                made.shown(attestation)
                body = json.dumps(attestation).encode()
            headers = {name: self.headers[name] for name in ("Cookie", "Content-Type") if name in self.headers}
            answer = owner.request(self.command, self.path, body or None, headers)
            self.send_response(answer.status)
            for name, value in answer.headers:
                if name in _PASSED_ON:
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(answer.body)))
            self.end_headers()
            self.wfile.write(answer.body)

        do_GET = do_POST = _pass_on

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "relay.pem")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        made.url = f"https://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield made
        server.shutdown()
        thread.join()
    owner.close()


def _leave_out(attestation: dict[str, Any]) -> None:
    del attestation["init-data"]


def _leave_as_is(attestation: dict[str, Any]) -> None:
    pass


@pytest.mark.parametrize("shown", [_leave_out, _leave_as_is])
@pytest.mark.parametrize("pinned", ["the relay alone", "both", "the relay in another spelling"])
def test_a_relay_gets_no_session_for_the_agents_key(
    kbs: Any, relay: Relay, platform_of: Callable[..., Any], shown: Callable[[dict[str, Any]], None], pinned: str
) -> None:
    kbs.admin.set_resource("default/image-key/relayed", b"k" * 32)
    other = relay.certificate.replace(" CERTIFICATE-", " X509 CERTIFICATE-")
    certificate = {"the relay alone": relay.certificate, "both": kbs.certificate + relay.certificate}.get(
        pinned, kbs.certificate + other
    )
    init_data = _make_init_data(certificate)
    relay.shown = shown
    agent = platform_of(config_id=binding.pad(InitData.parse(init_data.decode()).digest()))
    with contextlib.closing(KbsClient(relay.url, relay.certificate, agent, init_data, 20)) as client:
        with pytest.raises(PeerError) as caught:
            client.get(URI)
    assert caught.value.code == "quote-refused"


def test_an_agent_that_pins_this_kbs_is_served(kbs: Any, platform_of: Callable[..., Any]) -> None:
    kbs.admin.set_resource("default/image-key/relayed", b"k" * 32)
    init_data = _make_init_data(kbs.certificate)
    agent = platform_of(config_id=binding.pad(InitData.parse(init_data.decode()).digest()))
    assert kbs.client(agent, init_data=init_data).get(URI) == b"k" * 32
