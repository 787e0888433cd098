"""Three KBS instances on one PostgreSQL behind a balancer of TCP connections, which end and die while enclaves attest.

The clients are the enclave's own, each attestation is by a new one, as a pod's; the balancer is HAProxy, which asks
`/readyz`. Instances are restarted in order, one after another, and killed with SIGKILL, one or two at once, at random: every
attestation must succeed, and all that was acknowledged must be in the audit log.

ENCLAVE_CC_ATTESTATIONS attestations by ENCLAVE_CC_CLIENTS clients; `make heavy` runs 2,000 by 64.
"""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from enclave_cc.enclave.attest.client import KbsClient
from enclave_cc.errors import EnclaveCcError

ATTESTATIONS = int(os.environ.get("ENCLAVE_CC_ATTESTATIONS", "200"))
CLIENTS = int(os.environ.get("ENCLAVE_CC_CLIENTS", "16"))
INSTANCES = 3
VALUE = b"v" * 32
DEADLINE = 60  # the agent's own default

HAPROXY = """\
defaults
    mode tcp
    timeout connect 2s
    timeout client 60s
    timeout server 60s
    timeout check 2s
    retries 3
    option redispatch
    option httpchk GET /readyz
listen kbs
    bind fd@{descriptor}
    balance roundrobin
    default-server check check-ssl verify none inter 200ms fall 1 rise 1
{servers}
"""


@pytest.fixture(scope="module")
def instances(machine: Any, new_kbs: Any, tmp_path_factory: pytest.TempPathFactory, postgresql: Any) -> Iterator[list[Any]]:
    """Of one directory and one database, each with an address of its own."""
    base = tmp_path_factory.mktemp("balanced")
    first = new_kbs(base, machine, database=postgresql.url(postgresql.create_database()))
    settings = first.directory / "kbs.toml"
    changed = settings.read_text().replace("end_delay = 0 ", "end_delay = 1 ")
    settings.write_text(changed)
    made = [first]
    for number in range(1, INSTANCES):
        made.append(replace(first, log=base / f"log{number}", process=None, url="", clients=[]))
        made[-1].start()
    yield made
    for each in made:
        if each.process.poll() is None:
            assert each.stop() == 0
        each.process.stdout.close()


@pytest.fixture
def balancer(instances: list[Any], tmp_path: Path) -> Iterator[str]:
    """The URL of HAProxy before the instances."""
    with socket.create_server(("127.0.0.1", 0), backlog=512) as listener:
        addresses = [each.url.removeprefix("https://") for each in instances]
        servers = "\n".join(f"    server kbs{number} {address}" for number, address in enumerate(addresses))
        settings = tmp_path / "haproxy.cfg"
        settings.write_text(HAPROXY.format(descriptor=listener.fileno(), servers=servers))
        with (tmp_path / "haproxy.log").open("wb") as log:
            process = subprocess.Popen(
                ["haproxy", "-db", "-f", str(settings)], pass_fds=(listener.fileno(),), stdout=log, stderr=subprocess.STDOUT
            )
        try:
            yield f"https://127.0.0.1:{listener.getsockname()[1]}"
            assert process.poll() is None, (tmp_path / "haproxy.log").read_text()
        finally:
            process.kill()
            process.wait()


@dataclass
class Enclaves:
    """Threads that attest and ask for a resource, each time anew, until `left` is used up."""

    url: str
    certificate: str
    platform: Any
    left: int
    acknowledged: Counter[str] = field(default_factory=Counter)  # releases, by path
    failed: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._run, args=(f"default/key/{n}",)) for n in range(CLIENTS)]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def join(self) -> None:
        for thread in self._threads:
            thread.join()

    @property
    def working(self) -> bool:
        return any(thread.is_alive() for thread in self._threads)

    def _take(self) -> bool:
        with self._lock:
            self.left -= 1
            return self.left >= 0

    def _run(self, path: str) -> None:
        while self._take():
            client = KbsClient(self.url, self.certificate, self.platform, None, DEADLINE)
            try:
                assert client.get(f"kbs:///{path}") == VALUE
                with self._lock:
                    self.acknowledged[path] += 1
            except (EnclaveCcError, AssertionError) as error:
                self.failed.append(repr(error))
            finally:
                client.close()


def kill_some(instances: list[Any], chance: random.Random) -> int:
    """One or two at once; the rest goes on meanwhile."""
    chosen = chance.sample(instances, chance.choice((1, 2)))
    for each in chosen:
        time.sleep(chance.uniform(0, 0.3))
        each.stop(signal.SIGKILL)
    for each in chosen:
        each.start()
    return len(chosen)


def test_every_attestation_succeeds(instances: list[Any], balancer: str, enclave: Any) -> None:
    first = instances[0]
    for number in range(CLIENTS):
        first.admin.set_resource(f"default/key/{number}", VALUE)
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    enclaves = Enclaves(balancer, first.certificate, enclave, ATTESTATIONS)
    restarts = kills = 0
    enclaves.start()
    try:
        while enclaves.working:
            kills += kill_some(instances, chance)
            if enclaves.working:
                following = instances[restarts % INSTANCES]
                assert following.stop() == 0
                following.start()
                restarts += 1
    finally:
        enclaves.left = 0
        enclaves.join()
    print(f"{kills} killed, {restarts} restarted")
    assert enclaves.failed == []
    assert enclaves.acknowledged.total() == ATTESTATIONS
    assert kills
    check_audit_log(first, enclaves)
    check_events(instances)


def check_audit_log(kbs: Any, enclaves: Enclaves) -> None:
    lines = [json.loads(line) for line in kbs.cli("kbs", "audit", "export", "--all").stdout.splitlines()]
    entries = [line["entry"] for line in lines if "entry" in line]
    assert json.loads(kbs.cli("kbs", "audit", "verify", "--json").stdout)["entries"] >= len(entries)
    attested = {each["document"]["decision"]: each for each in entries if each["kind"] == "attestation"}
    releases = [each for each in entries if each["kind"] == "release"]
    # Each acknowledged release is there, of an attestation of its own: an answer that got lost may have left one more.
    paths = {each["document"]["attestation"]: each["subject"]["path"] for each in releases}
    found = Counter(paths.values())
    assert {path: count for path, count in enclaves.acknowledged.items() if found[path] < count} == {}
    assert set(paths) <= set(attested)
    # No evidence, and so no challenge, was accepted twice.
    evidence = Counter(each["document"]["evidence"] for each in attested.values())
    assert evidence.total() >= ATTESTATIONS
    assert set(evidence.values()) == {1}
    assert not [each for each in entries if each["kind"] == "denial"]


def check_events(instances: list[Any]) -> None:
    kinds = Counter(event["event"] for each in instances for event in each.events())
    expected = {"serving", "allow", "resource-set", "reference-values-added"}
    assert set(kinds) <= expected, [e for each in instances for e in each.events() if e["event"] not in expected][:10]
