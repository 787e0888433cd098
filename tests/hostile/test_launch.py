"""HOST-009, HOST-011, HOST-014: the host changes how a workload starts, or reaches into it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import testbed as testbeds

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("clean")]


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(["IMAGE", "cat", "/opt/secret"], id="command"),
        pytest.param(["--entrypoint", "/bin/cat", "IMAGE", "/opt/secret"], id="entrypoint"),
        pytest.param(["-e", "LD_PRELOAD=/data/spy.so", "IMAGE"], id="environment"),
        pytest.param(["-e", "COLOUR=red", "IMAGE"], id="environment of the image"),
        pytest.param(["-u", "0", "IMAGE"], id="user"),
        pytest.param(["-w", "/", "IMAGE"], id="work directory"),
        pytest.param(["-v", "/tmp:/bin", "IMAGE"], id="volume"),
        pytest.param(["-i", "IMAGE"], id="standard input"),
        pytest.param(["-t", "IMAGE"], id="terminal"),
    ],
)
def test_what_the_owner_does_not_allow_is_refused(testbed: testbeds.Testbed, strict: str, words: list[str]) -> None:
    done = testbed.cli("run", "--rm", *(strict if word == "IMAGE" else word for word in words), check=False)
    assert testbeds.last_error(done) == "launch-denied", done.stderr
    assert done.returncode == 54
    assert done.stdout == ""


def test_each_allowance_opens_its_own_door_only(testbed: testbeds.Testbed, sources: Path) -> None:
    image = testbed.publish(f"{sources}:configured", "doors", "--allow", "env")
    assert testbed.cli("run", "--rm", "--quiet", "-e", "COLOUR=red", image).stdout.endswith("red\n")
    assert testbeds.last_error(testbed.cli("run", "--rm", image, "id", check=False)) == "launch-denied"


def test_exec_needs_the_owners_word(testbed: testbeds.Testbed, sources: Path) -> None:
    root = sources.parent / "root"
    source = testbeds.make_image(sources, "sleeper", root, "--config.cmd", "sleep", "--config.cmd", "60")
    image = testbed.publish(source, "sleeper")
    pod = testbed.cli("run", "-d", image).stdout.strip()
    done = testbed.cli("exec", pod, "cat", "/opt/secret", check=False)
    assert testbeds.last_error(done) == "launch-denied"
    assert done.stdout == ""


def test_one_pods_agent_knows_nothing_of_anothers_container(testbed: testbeds.Testbed, busybox: str) -> None:
    from enclave_cc.errors import PeerError
    from enclave_cc.transport import ttrpc
    from enclave_cc.wire.pb import agent as messages
    from enclave_cc.wire.pb import codec

    first, second = (testbed.cli("run", "-d", busybox, "sleep", "60").stdout.strip() for _ in range(2))
    pods = {str(p["id"]): p for p in json.loads(testbed.cli("ps", "--json").stdout)}
    sockets = list((testbed.run_directory / "pods").glob(f"{first}*/**/agent.sock"))
    assert sockets, "the first pod's agent has a socket"
    client = ttrpc.Client(str(sockets[0]), deadline=10)
    container = str(pods[second].get("container", second))
    with pytest.raises(PeerError) as caught:
        request = codec.encode(messages.HandoverRequest(container_id=container, message=b"\0" * 64))
        client.call("enclavecc.agent.v1.Handover", "Begin", request, timeout=10)
    assert caught.value.code in {"not-found", "handover-refused"}
    client.close()
