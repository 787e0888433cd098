"""A collateral service that speaks as a PCCS does (API v4), over HTTPS on loopback, for tests.

It serves the bundles that it is given: simulated ones, or Intel's own. Faults are switched on by its members.
"""

from __future__ import annotations

import http.server
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

from enclave_cc.crypto import self_signed
from enclave_cc.crypto.jws import SigningKey
from enclave_cc.owner.verifier.collateral import name_platform
from enclave_cc.wire.sgx.collateral import Collateral


class Pccs:
    """`requests` counts by path; `delay` holds every answer back; `fail` answers that status; `mangle` changes bodies."""

    def __init__(self) -> None:
        self.url = ""
        self.certificate = ""
        self.bundles: dict[tuple[str, str], Collateral] = {}
        self.requests: list[str] = []
        self.delay = 0.0
        self.fail: int | None = None
        self.mangle: dict[str, bytes] = {}
        self.crl_form = "hex"

    def add(self, collateral: Collateral) -> None:
        _, fmspc, ca = name_platform(collateral)
        self.bundles[fmspc.hex(), ca] = collateral

    def answer(self, target: str) -> tuple[int, dict[str, str], bytes]:
        parts = urlsplit(target)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        name = parts.path.removeprefix("/sgx/certification/v4/")
        self.requests.append(name)
        time.sleep(self.delay)
        if self.fail is not None:
            return self.fail, {}, b"no"
        if name in self.mangle:
            return 200, {}, self.mangle[name]
        some = next(iter(self.bundles.values()), None)
        match name:
            case "tcb":
                bundle = next((each for (fmspc, _), each in self.bundles.items() if fmspc == query["fmspc"].lower()), None)
                if bundle is None:
                    return 404, {}, b"Not Found"
                body = f'{{"tcbInfo":{bundle.tcb_info},"signature":"{bundle.tcb_info_signature.hex()}"}}'.encode()
                return 200, {"TCB-Info-Issuer-Chain": quote(bundle.tcb_info_issuer_chain)}, body
            case "qe/identity" if some is not None:
                body = f'{{"enclaveIdentity":{some.qe_identity},"signature":"{some.qe_identity_signature.hex()}"}}'.encode()
                return 200, {"SGX-Enclave-Identity-Issuer-Chain": quote(some.qe_identity_issuer_chain)}, body
            case "pckcrl":
                bundle = next((each for (_, ca), each in self.bundles.items() if ca == query["ca"]), None)
                if bundle is None:
                    return 404, {}, b"Not Found"
                return 200, {"SGX-PCK-CRL-Issuer-Chain": quote(bundle.pck_crl_issuer_chain)}, self._crl(bundle.pck_crl)
            case "rootcacrl" if some is not None:
                return 200, {}, self._crl(some.root_ca_crl)
            case _:
                return 404, {}, b"Not Found"

    def _crl(self, der: bytes) -> bytes:
        return der if self.crl_form == "der" else der.hex().encode()


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # a client that did not wait for its answer


@contextmanager
def running(directory: Path) -> Iterator[Pccs]:
    made = Pccs()
    key, now = SigningKey.generate("ES256").to_pem(), int(time.time())
    certificate = self_signed.make_certificate(
        key, common_name="pccs", hosts=("127.0.0.1",), not_before=now - 60, not_after=now + 3600
    )
    (directory / "pccs.pem").write_bytes(key + certificate)

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *arguments: Any) -> None:
            pass

        def do_GET(self) -> None:
            status, headers, body = made.answer(self.path)
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(directory / "pccs.pem")
    with Server(("127.0.0.1", 0), Handler) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        made.url, made.certificate = f"https://127.0.0.1:{server.server_address[1]}", certificate.decode()
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield made
        finally:
            server.shutdown()
            thread.join()
