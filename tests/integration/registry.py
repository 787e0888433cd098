"""Debian's docker-registry on a free loopback port, with its storage in a temporary directory: plain, with basic or
token authentication, with TLS. Not a test; a part that tests share.
"""

from __future__ import annotations

import base64
import contextlib
import http.server
import json
import os
import secrets
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from enclave_cc.crypto import self_signed
from enclave_cc.wire.oci.digest import Digest

USERNAME, PASSWORD = "owner", "correct horse"
# of USERNAME and PASSWORD; docker-registry takes bcrypt only
_HTPASSWD = "owner:$2y$05$EJA14vCFttDQnHuaKdCXGO4lgFLPqZaxhw4iAUXiYouhMDiKEhgZa\n"
SERVICE, ISSUER = "registry under test", "token server under test"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class RegistryServer:
    """A running registry. `host` is HOST:PORT; `ca_pem` its certificate if it serves TLS. `users`: htpasswd(1) lines."""

    def __init__(self, directory: Path, *, auth: str | None = None, tls: bool = False, users: str = "") -> None:
        self.directory = directory
        self.storage = directory / "storage"
        self.ca_pem: str | None = None
        self.token_server: TokenServer | None = None
        self._process: subprocess.Popen[bytes] | None = None
        port = free_port()
        self.host = f"127.0.0.1:{port}"
        directory.mkdir(parents=True, exist_ok=True)
        self.storage.mkdir()
        settings: dict[str, Any] = {
            "version": 0.1,
            "log": {"level": "info"},
            "storage": {"filesystem": {"rootdirectory": str(self.storage)}, "delete": {"enabled": True}},
            "http": {"addr": self.host},
        }
        if tls:
            settings["http"]["tls"] = self._make_tls()
        if auth == "basic":
            (directory / "htpasswd").write_text(_HTPASSWD + users)
            settings["auth"] = {"htpasswd": {"realm": "registry under test", "path": str(directory / "htpasswd")}}
        elif auth == "token":
            self.token_server = TokenServer(directory)
            settings["auth"] = {
                "token": {
                    "realm": self.token_server.url,
                    "service": SERVICE,
                    "issuer": ISSUER,
                    "rootcertbundle": str(directory / "token.crt"),
                }
            }
        (directory / "config.json").write_text(json.dumps(settings))  # JSON is YAML

    def start(self) -> None:
        """Runs the registry; returns when it accepts connections."""
        with (self.directory / "log").open("ab") as log:
            command = ["docker-registry", "serve", str(self.directory / "config.json")]
            environment = {**os.environ, "OTEL_TRACES_EXPORTER": "none"}
            self._process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        host, _, port = self.host.partition(":")
        for _ in range(400):
            with contextlib.suppress(OSError), socket.create_connection((host, int(port)), timeout=1):
                return
            if self._process.poll() is not None:
                break
            time.sleep(0.025)
        self.close()
        raise RuntimeError((self.directory / "log").read_text()[-2000:])

    def stop(self) -> None:
        """Ends the registry; `start` runs it again on the same port."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None

    def close(self) -> None:
        self.stop()
        if self.token_server is not None:
            self.token_server.close()
            self.token_server = None

    def blob_path(self, digest: str) -> Path:
        """Where the registry keeps a blob, for tests that change it behind its back."""
        name = Digest.parse(digest).hex
        return self.storage / f"docker/registry/v2/blobs/sha256/{name[:2]}/{name}/data"

    def tag_path(self, repository: str, tag: str) -> Path:
        """The link of a tag: a file with a digest in it."""
        return self.storage / f"docker/registry/v2/repositories/{repository}/_manifests/tags/{tag}/current/link"

    def _make_tls(self) -> dict[str, str]:
        key, certificate = make_identity(["127.0.0.1", "localhost"])
        (self.directory / "tls.key").write_bytes(key)
        (self.directory / "tls.crt").write_bytes(certificate)
        self.ca_pem = certificate.decode()
        return {"certificate": str(self.directory / "tls.crt"), "key": str(self.directory / "tls.key")}


def make_identity(hosts: list[str]) -> tuple[bytes, bytes]:
    """A P-256 key and its self-signed certificate, PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    now = int(time.time())
    certificate = self_signed.make_certificate(
        pem, common_name="registry under test", hosts=hosts, not_before=now - 3600, not_after=now + 86400
    )
    return pem, certificate


class TokenServer:
    """distribution's token authentication (spec/auth/jwt): gives USERNAME what it asks for, the anonymous pulling only."""

    def __init__(self, directory: Path) -> None:
        key, certificate = make_identity(["127.0.0.1"])
        (directory / "token.crt").write_bytes(certificate)
        body = "".join(line for line in certificate.decode().splitlines() if "-----" not in line)
        self.requests: list[dict[str, str | None]] = []
        requests = self.requests

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                query = parse_qs(urlsplit(self.path).query)
                authorization = self.headers.get("Authorization")
                requests.append({"scope": query["scope"][0], "authorization": authorization})
                expected = "Basic " + base64.b64encode(f"{USERNAME}:{PASSWORD}".encode()).decode()
                if authorization is not None and authorization != expected:
                    self.answer(401, {"errors": [{"code": "UNAUTHORIZED"}]})
                    return
                kind, rest = query["scope"][0].split(":", 1)
                name, actions = rest.rsplit(":", 1)
                allowed = [a for a in actions.split(",") if authorization is not None or a == "pull"]
                now = int(time.time())
                claims = {
                    "iss": ISSUER,
                    "sub": USERNAME if authorization else "",
                    "aud": query["service"][0],
                    "exp": now + 300,
                    "nbf": now - 5,
                    "iat": now,
                    "jti": secrets.token_hex(8),
                    "access": [{"type": kind, "name": name, "actions": allowed}],
                }
                token = jwt.encode(claims, key, algorithm="ES256", headers={"x5c": [body]})
                self.answer(200, {"token": token, "expires_in": 300})

            def answer(self, status: int, value: object) -> None:
                data = json.dumps(value).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/token"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@contextlib.contextmanager
def serve(directory: Path, *, auth: str | None = None, tls: bool = False, users: str = "") -> Iterator[RegistryServer]:
    """A registry for the length of a with block."""
    server = RegistryServer(directory, auth=auth, tls=tls, users=users)
    server.start()
    try:
        yield server
    finally:
        server.close()
