"""Load of whole RCAR rounds: challenge, a real simulated DCAP quote over it, attestation, one resource opened.

A process of its own, so that what it costs is not counted as the server's: reads one JSON object of options from stdin,
writes one of results to stdout. Clients share one simulated machine; each round has a session of its own.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import sys
import time
from pathlib import Path
from typing import Any

from enclave_cc.crypto import jwe
from enclave_cc.crypto.jwk import TeeKey
from enclave_cc.enclave.attest import evidence
from enclave_cc.simulator.cpu import SimulatedEnclave, SoftwareCpu
from enclave_cc.simulator.platform import Platform as SimulatedMachine
from enclave_cc.simulator.quoting import QuotingEnclave
from enclave_cc.wire.rcar import messages
from enclave_cc.wire.sgx.report import AttributeFlag, Attributes, ReportBody, TargetInfo

MR_ENCLAVE, MR_SIGNER = bytes(range(32)), bytes(range(32, 64))
STAGES = ("connect", "auth", "attest", "resource")


class Enclave:
    """The platform of a production enclave whose CPU is in this process: what `evidence.make_attestation` asks for."""

    def __init__(self, machine: SimulatedMachine) -> None:
        flags = AttributeFlag.INIT | AttributeFlag.MODE64BIT | AttributeFlag.KSS
        body = ReportBody(attributes=Attributes(flags, 3), mr_enclave=MR_ENCLAVE, mr_signer=MR_SIGNER, isv_prod_id=1, isv_svn=3)
        self._enclave = SimulatedEnclave(SoftwareCpu(machine), body)
        self._quoting = QuotingEnclave(machine)

    def quote(self, data: bytes) -> bytes:
        target: TargetInfo = self._quoting.target_info()
        return self._quoting.quote(self._enclave.ereport(target, data.ljust(64, b"\0")))


class Client:
    """Rounds against one server; `kept`: on one connection, else each on a new one."""

    def __init__(self, options: dict[str, Any], context: ssl.SSLContext, enclave: Enclave) -> None:
        self._host, self._port = options["host"], options["port"]
        self._paths = options["resources"]
        self._kept = options["kept"]
        self._context = context
        self._enclave = enclave
        self._key = TeeKey.generate()
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._rounds = 0

    async def round(self) -> list[float]:
        """Seconds of each of `STAGES`, our own work between them left out. Raises `RuntimeError` for any refusal."""
        began = time.perf_counter()
        if self._streams is None:
            self._streams = await asyncio.open_connection(self._host, self._port, ssl=self._context)
        connected = time.perf_counter() - began
        request = messages.Request(evidence.TEE, extra_params={"supported-hash-algorithms": list(messages.HASH_ALGORITHMS)})
        challenged, headers, body = await self._ask("POST", "/auth", request.encode())
        cookie = headers.split(b"kbs-session-id=", 1)[1].split(b";", 1)[0].decode()
        nonce = messages.Challenge.parse(body).nonce
        attestation = evidence.make_attestation(self._enclave, nonce, self._key.public, None)  # type: ignore[arg-type]
        attested, _, _ = await self._ask("POST", "/attest", attestation.encode(), cookie)
        path = self._paths[self._rounds % len(self._paths)]
        released, _, body = await self._ask("GET", f"/resource/{path}", b"", cookie)
        if self._rounds % 50 == 0 and jwe.decrypt(body, self._key).reveal() != path.encode():
            raise RuntimeError("another resource than the one asked for")
        self._rounds += 1
        if not self._kept:
            self.close()
        return [connected, challenged, attested, released]

    async def _ask(self, method: str, path: str, body: bytes, cookie: str = "") -> tuple[float, bytes, bytes]:
        """Seconds, head and body of an answer with status 200."""
        assert self._streams is not None
        reader, writer = self._streams
        head = f"{method} {messages.PREFIX}{path} HTTP/1.1\r\nHost: kbs\r\nContent-Length: {len(body)}\r\n"
        head += f"Cookie: {messages.COOKIE}={cookie}\r\n\r\n" if cookie else "\r\n"
        began = time.perf_counter()
        writer.write(head.encode() + body)
        headers = await reader.readuntil(b"\r\n\r\n")
        size = int(headers.lower().split(b"content-length:", 1)[1].split(b"\r\n", 1)[0])
        answer = await reader.readexactly(size)
        took = time.perf_counter() - began
        if not headers.startswith(b"HTTP/1.1 200 "):
            raise RuntimeError(f"{method} {path}: {headers[:40]!r} {answer[:300]!r}")
        return took, headers, answer

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].transport.abort()
            self._streams = None


async def run_closed(clients: list[Client], seconds: float) -> tuple[list[list[float]], float]:
    """Every client goes round as fast as it is answered: what the server can do."""
    found: list[list[float]] = []
    began = time.perf_counter()

    async def go(client: Client) -> None:
        while time.perf_counter() - began < seconds:
            found.append(await client.round())

    await asyncio.gather(*map(go, clients))
    return found, time.perf_counter() - began


async def run_open(clients: list[Client], seconds: float, rate: float) -> tuple[list[list[float]], float]:
    """`rate` rounds per second whatever the server does. A round that had to wait for a client began when it was due."""
    found: list[list[float]] = []
    idle: asyncio.Queue[Client] = asyncio.Queue()
    for client in clients:
        idle.put_nowait(client)
    running = set()
    began = time.perf_counter()

    async def go(due: float) -> None:
        client = await idle.get()
        late = time.perf_counter() - due
        stages = await client.round()
        stages[0] += late
        found.append(stages)
        idle.put_nowait(client)

    for number in range(int(seconds * rate)):
        due = began + number / rate
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        task = asyncio.create_task(go(due))
        running.add(task)
        task.add_done_callback(running.discard)
    await asyncio.gather(*running)
    return found, time.perf_counter() - began


def main() -> int:
    options = json.loads(sys.stdin.read())
    context = ssl.create_default_context(cafile=options["certificate"])
    enclave = Enclave(SimulatedMachine.load(Path(options["machine"])))
    clients = [Client(options, context, enclave) for _ in range(options["clients"])]
    rate = options.get("rate")
    seconds = options["seconds"]
    began = time.process_time()
    rounds, took = asyncio.run(run_closed(clients, seconds) if rate is None else run_open(clients, seconds, rate))
    json.dump({"rounds": rounds, "seconds": took, "cpu": time.process_time() - began}, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
