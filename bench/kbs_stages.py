"""Where the CPU time of a round goes: the whole KBS in this process, without HTTP, one request after another."""

from __future__ import annotations

import io
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench import rcar_load
from bench.kbs_server import PATHS
from enclave_cc.crypto.jwk import TeeKey
from enclave_cc.enclave.attest import evidence
from enclave_cc.owner.kbs import assembly
from enclave_cc.owner.kbs.config import KbsConfig
from enclave_cc.owner.kbs.directory import KbsDirectory
from enclave_cc.owner.kbs.http import HttpAnswer, HttpRequest
from enclave_cc.owner.kbs.routes import Routes
from enclave_cc.simulator.platform import Platform as SimulatedMachine
from enclave_cc.wire.rcar import messages

TITLES = {
    "verify": "attest: quote and collateral",
    "appraise": "attest: Rego, reference values",
    "sign": "attest: token",
    "attest audit": "attest: audit entry, session, decision",
    "attest": "attest: parsing and the rest",
    "policy": "resource: Rego",
    "fetch": "resource: read and opened",
    "encrypt": "resource: JWE",
    "resource audit": "resource: audit entry, decision",
    "resource": "resource: parsing and the rest",
    "auth": "auth",
    "elsewhere": "recording, in its own thread",
}


def measure(kbs: Path, machine: SimulatedMachine, rounds: int) -> dict[str, float]:
    """CPU milliseconds of a round by stage, as `TITLES` names them."""
    directory = KbsDirectory.locate(str(kbs))
    with assembly.assemble(directory, KbsConfig.load(directory), log_stream=io.StringIO()) as server:
        return _measure(server.routes, machine, rounds)


def _measure(routes: Routes, machine: SimulatedMachine, rounds: int) -> dict[str, float]:
    enclave, key = rcar_load.Enclave(machine), TeeKey.generate()
    request = messages.Request(evidence.TEE, extra_params={"supported-hash-algorithms": list(messages.HASH_ALGORITHMS)}).encode()
    spent: dict[str, float] = defaultdict(float)
    step = ""

    @contextmanager
    def clock(stage: str) -> Iterator[None]:
        began = time.thread_time()
        yield
        took = time.thread_time() - began
        spent[f"{step} {stage}" if stage == "audit" else stage] += took
        spent[step] -= took

    routes.metrics.stages.time = clock  # type: ignore[assignment, method-assign]  # CPU time in place of what a clock says

    def ask(name: str, method: str, path: str, body: bytes, cookie: str | None = None) -> HttpAnswer:
        nonlocal step
        step, began = name, time.thread_time()
        head = HttpRequest(method, messages.PREFIX + path, {}, cookie, None, body)
        answer = routes.answer(head, routes.find(head))
        spent[name] += time.thread_time() - began
        if answer.status != 200:
            raise RuntimeError(f"{path}: {answer.status} {answer.body!r}")
        return answer

    def go(count: int) -> float:
        """Seconds of CPU, of all threads, that `count` rounds took."""
        prepared = []
        for _ in range(count):
            answer = ask("auth", "POST", "/auth", request)
            cookie = answer.headers["Set-Cookie"].split("=", 1)[1].split(";", 1)[0]
            nonce = messages.Challenge.parse(answer.body).nonce
            prepared.append((cookie, evidence.make_attestation(enclave, nonce, key.public, None).encode()))  # type: ignore[arg-type]
        routes.broker.recorder.flush()
        began = time.process_time()
        for cookie, body in prepared:
            ask("attest", "POST", "/attest", body, cookie)
            ask("resource", "GET", f"/resource/{PATHS[0]}", b"", cookie)
        routes.broker.recorder.flush()
        return time.process_time() - began

    go(20)
    spent.clear()
    whole = go(rounds) + spent["auth"]
    spent["elsewhere"] = max(0.0, whole - sum(spent.values()))
    return {stage: seconds / rounds * 1e3 for stage, seconds in spent.items()}
