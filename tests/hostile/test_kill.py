"""HOST-012: any process is killed at any time.

Never a hang, never plaintext on a disk, never a wrong result; the next run works and takes away what was left. The
moments are random; the seed is printed, and ENCLAVE_CC_KILLS sets how many.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time

import pytest

import testbed as testbeds

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.timeout(1500)]

KILLS = int(os.environ.get("ENCLAVE_CC_KILLS", "60"))
VICTIMS = ("cli", "agent", "boot", "kbs")
# A run takes well under a second when its image is cached; the moments cover it and a little more.
LATEST = 0.7


def find_victims(testbed: testbeds.Testbed, kind: str, cli: subprocess.Popen[bytes]) -> list[int]:
    if kind == "cli":
        return [cli.pid]
    if kind == "kbs":
        assert testbed.kbs is not None
        return [testbed.kbs.pid]
    word = "enclave_cc.enclave.agent" if kind == "agent" else "enclave_cc.enclave.boot"
    return [int(line.split(":")[0]) for line in testbeds.enclave_processes(str(testbed.directory)) if word in line]


def test_kill_at_random_points(testbed: testbeds.Testbed, busybox: str, canary: str) -> None:
    seed = int(os.environ.get("ENCLAVE_CC_SEED", random.randrange(2**32)))
    print(f"seed {seed}")
    rng = random.Random(seed)
    expected = testbed.cli("run", "--rm", "--quiet", busybox, "sha256sum", "/opt/secret").stdout
    hits = dict.fromkeys(VICTIMS, 0)
    for number in range(KILLS):
        kind = VICTIMS[number % len(VICTIMS)]
        cli = testbed.spawn("run", "--rm", "--quiet", busybox, "sha256sum", "/opt/secret")
        time.sleep(rng.uniform(0, LATEST))
        for victim in find_victims(testbed, kind, cli):
            try:
                os.kill(victim, signal.SIGKILL)
                hits[kind] += 1
            except ProcessLookupError:
                pass
        out, err = cli.communicate(timeout=60)  # a hang fails here
        if cli.returncode == 0:
            assert out.decode() == expected, err
        else:
            assert out.decode() in ("", expected), err
        if kind == "kbs" and testbed.kbs is not None:
            testbed.kbs.wait(10)
            assert testbed.kbs.stdout is not None
            testbed.kbs.stdout.close()
            testbed.start_kbs()
        if number % 20 == 19:
            after = testbed.cli("run", "--rm", "--quiet", busybox, "sha256sum", "/opt/secret")
            assert after.stdout == expected
            left = {kind: items for kind, items in testbed.leftovers().items() if items}
            assert left == {}, f"after kill {number}"
    assert min(hits.values()) > KILLS // 40, hits  # the moments must hit
    assert testbed.find_plaintext(canary.encode()) == []
