"""`kubectl exec` and `kubectl attach`, with and without a terminal. Each test runs with ordinary runc pods and with ours."""

from __future__ import annotations

import hashlib

import pytest
from cri_messages import ContainerState
from kubelet import Kubelet, wait_until
from streaming import Stream

pytestmark = pytest.mark.root

FOREVER = "while :; do sleep 0.1; done"


def test_exec_streams(kubelet: Kubelet) -> None:
    pod = kubelet.run_pod()
    container = pod.shell(FOREVER)
    with Stream(pod.cri.exec_url(container, "/bin/sh", "-c", "read x; echo got $x; echo err >&2; exit 6", stdin=True)) as stream:
        stream.write(b"a line\n")
        assert stream.wait() == 6
        assert (stream.stdout, stream.stderr) == (b"got a line\n", b"err\n")


@pytest.mark.parametrize("tty", [False, True])
def test_an_exec_that_the_owner_denies(enclaves: Kubelet, strict_server: str, tty: bool) -> None:
    enclaves.image = strict_server
    pod = enclaves.run_pod()
    container = pod.start()
    wait_until(lambda: pod.output(container) == "up\n")
    with Stream(pod.cri.exec_url(container, "/bin/cat", "/opt/secret", tty=tty, stdin=True)) as stream:
        assert "launch-denied" in stream.read_failure()
        assert (stream.stdout, stream.stderr) == (b"", b"")
    assert pod.cri.container_status(container).state == ContainerState.RUNNING


def test_exec_with_much_input(kubelet: Kubelet) -> None:
    """Each byte, in order, and its end."""
    pod = kubelet.run_pod()
    container = pod.shell(FOREVER)
    data = bytes(range(256)) * 4096
    expected = hashlib.sha256(data).hexdigest()
    with Stream(pod.cri.exec_url(container, "/bin/sh", "-c", f"head -c {len(data)} | sha256sum", stdin=True)) as stream:
        for start in range(0, len(data), 16384):
            stream.write(data[start : start + 16384])
        assert stream.wait() == 0
        assert stream.stdout.split()[0].decode() == expected


def test_exec_with_a_terminal(kubelet: Kubelet) -> None:
    pod = kubelet.run_pod()
    container = pod.shell(FOREVER)
    with Stream(pod.cri.exec_url(container, "/bin/sh", tty=True, stdin=True)) as stream:
        stream.resize(99, 33)
        stream.read_until(b"# ")
        stream.write(b"tty; stty size\n")
        stream.read_until(b"/dev/pts/")
        stream.read_until(b"33 99")
        stream.resize(80, 24)
        stream.read_until(b"# ")
        stream.write(b"stty size\n")
        stream.read_until(b"24 80")
        stream.write(b"exit 5\n")
        assert stream.wait() == 5


def test_attach(kubelet: Kubelet) -> None:
    pod = kubelet.run_pod()
    container = pod.shell("while read x; do echo got $x; [ $x = end ] && exit 4; done", stdin=True)
    with Stream(pod.cri.attach_url(container, stdin=True)) as stream:
        stream.write(b"one\n")
        stream.read_until(b"got one\n")
        stream.write(b"end\n")
        stream.read_until(b"got end\n")
    assert pod.wait(container).exit_code == 4
    assert pod.output(container) == "got one\ngot end\n"  # the log has it too


def test_a_container_with_a_terminal(kubelet: Kubelet) -> None:
    pod = kubelet.run_pod()
    container = pod.start("/bin/sh", tty=True, stdin=True)
    with Stream(pod.cri.attach_url(container, tty=True, stdin=True)) as stream:
        stream.resize(77, 22)
        stream.write(b"\n")
        stream.read_until(b"# ")
        stream.write(b"stty size; tty; exit 3\n")
        stream.read_until(b"22 77")
        stream.read_until(b"/dev/")
    assert pod.wait(container).exit_code == 3


def test_standard_input_once(kubelet: Kubelet) -> None:
    """stdin_once: the input ends when the first attach session does."""
    pod = kubelet.run_pod()
    container = pod.start("/bin/cat", stdin=True, stdin_once=True)
    with Stream(pod.cri.attach_url(container, stdin=True)) as stream:
        stream.write(b"words\n")
        stream.read_until(b"words\n")
    assert pod.wait(container).exit_code == 0
    wait_until(lambda: pod.output(container) == "words\n")
