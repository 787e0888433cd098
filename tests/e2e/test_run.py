"""`enclave-cc run` and its siblings as a user meets them. Real registry, KBS, runc, FUSE, EROFS."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import termios
import time
from pathlib import Path

import pytest

import testbed as testbeds

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("clean")]


def wait_until(condition: object, seconds: float = 15) -> None:
    assert callable(condition)
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "the condition did not come true in time"
        time.sleep(0.05)


def test_output_and_exit_code_pass_through(testbed: testbeds.Testbed, busybox: str) -> None:
    done = testbed.cli("run", "--rm", busybox, "sh", "-c", "echo out; echo err >&2; exit 7", check=False)
    assert (done.returncode, done.stdout) == (7, "out\n")
    assert "err\n" in done.stderr
    assert "simulated" in done.stderr  # said on every run


def test_the_images_own_configuration_holds(testbed: testbeds.Testbed, strict: str) -> None:
    done = testbed.cli("run", "--rm", "--quiet", strict)
    assert done.stdout == "uid=1000(app) gid=29(audio) groups=29(audio)\n/home/app\nblue\n"


def test_overrides(testbed: testbeds.Testbed, busybox: str, tmp_path: Path) -> None:
    (tmp_path / "in").write_text("from the host")
    tmp_path.chmod(0o755)
    words = ["-e", "A=1", "-e", "B=x y", "-u", "1000:29", "-w", "/tmp", "--hostname", "vault", "-v", f"{tmp_path}:/data:ro"]
    script = 'echo "$A $B"; id -u; id -g; pwd; hostname; cat /data/in; touch /data/no 2>/dev/null || echo; echo read-only'
    done = testbed.cli("run", "--rm", "--quiet", *words, busybox, "sh", "-c", script)
    assert done.stdout == "1 x y\n1000\n29\n/tmp\nvault\nfrom the host\nread-only\n"


def test_a_writable_volume_reaches_the_host(testbed: testbeds.Testbed, busybox: str, tmp_path: Path) -> None:
    testbed.cli("run", "--rm", "--quiet", "-v", f"{tmp_path}:/data", busybox, "sh", "-c", "echo result > /data/out")
    assert (tmp_path / "out").read_text() == "result\n"


def test_standard_input(testbed: testbeds.Testbed, busybox: str) -> None:
    done = testbed.cli("run", "--rm", "--quiet", "-i", busybox, "cat", text_in="line one\nline two\n")
    assert done.stdout == "line one\nline two\n"


def test_without_i_the_input_is_empty(testbed: testbeds.Testbed, busybox: str) -> None:
    assert testbed.cli("run", "--rm", "--quiet", busybox, "wc", "-c", text_in="x").stdout.strip() == "0"


def test_the_workload_is_confined(testbed: testbeds.Testbed, busybox: str) -> None:
    script = "ps | wc -l; ls /run 2>/dev/null | wc -l; cat /proc/1/comm; "
    script += "mount -t tmpfs x /tmp 2>/dev/null || echo no mount; ls /proc/1/fd"
    done = testbed.cli("run", "--rm", "--quiet", busybox, "sh", "-c", script)
    lines = done.stdout.split("\n")
    assert lines[2] == "sh"
    assert "no mount" in lines
    assert set(done.stdout.split("no mount\n")[1].split()) <= {"0", "1", "2", "3", "10"}


def test_a_terminal(testbed: testbeds.Testbed, busybox: str) -> None:
    master, slave = pty.openpty()
    command = [testbeds.ENCLAVE_CC, "run", "--rm", "--quiet", "-i", "-t", busybox, "sh"]
    process = subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, env=testbed.environment, start_new_session=True)
    os.close(slave)

    def read_until(text: bytes, seconds: float = 20) -> bytes:
        got, until = b"", time.monotonic() + seconds
        while text not in got:
            assert time.monotonic() < until, got
            if select.select([master], [], [], 0.2)[0]:
                got += os.read(master, 4096)
        return got

    read_until(b"# ")
    os.write(master, b"tty; stty size; exit 5\n")
    read_until(b"/dev/")
    deadline = time.monotonic() + 15
    while process.poll() is None and time.monotonic() < deadline:
        if select.select([master], [], [], 0.1)[0]:
            try:
                os.read(master, 4096)
            except OSError:
                break
    assert process.wait(10) == 5
    os.close(master)


def test_signals_are_forwarded(testbed: testbeds.Testbed, busybox: str) -> None:
    script = "trap 'echo caught; exit 3' TERM; echo ready; while :; do sleep 0.1; done"
    command = [testbeds.ENCLAVE_CC, "run", "--rm", "--quiet", busybox, "sh", "-c", script]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, env=testbed.environment)
    assert process.stdout is not None
    assert testbeds.read_line(process.stdout, seconds=20) == "ready"
    process.send_signal(signal.SIGTERM)
    assert process.stdout.read() == b"caught\n"
    assert process.wait(15) == 3
    process.stdout.close()


def test_detached_life(testbed: testbeds.Testbed, busybox: str) -> None:
    script = "echo begun; while :; do sleep 0.1; done"
    pod = testbed.cli("run", "-d", "--name", "life", busybox, "sh", "-c", script).stdout.strip()
    listed = {p["name"]: p for p in json.loads(testbed.cli("ps", "--json").stdout)}
    assert listed["life"]["id"] == pod
    assert listed["life"]["state"] == "running"
    wait_until(lambda: "begun" in testbed.cli("logs", "life").stdout)
    assert testbed.cli("exec", "life", "sh", "-c", "echo inside; exit 4", check=False).returncode == 4
    assert testbed.cli("exec", "-i", "life", "cat", text_in="piped").stdout == "piped"
    assert testbed.cli("run", "-d", "--name", "life", busybox, check=False).returncode == 3  # already-exists
    testbed.cli("stop", "-t", "1", "life")
    listed = {p["name"]: p for p in json.loads(testbed.cli("ps", "-a", "--json").stdout)}
    assert listed["life"]["state"] == "exited"
    assert "begun" in testbed.cli("logs", "life").stdout
    testbed.cli("rm", "life")
    assert "life" not in testbed.cli("ps", "-a").stdout


def test_a_memory_limit_is_named_when_it_is_hit(testbed: testbeds.Testbed, busybox: str) -> None:
    script = "x=$(head -c 4000000 /dev/zero | tr '\\0' a); y=; while :; do y=$y$x; done"
    done = testbed.cli("run", "--rm", "--memory", "96m", busybox, "/bin/busybox", "sh", "-c", script, check=False)
    assert done.returncode == 137
    assert "error memory-limit" in done.stderr


def test_networks(testbed: testbeds.Testbed, busybox: str) -> None:
    show = ["/bin/busybox", "sh", "-c", "ls /sys/class/net | tr '\\n' ' '"]
    assert testbed.cli("run", "--rm", "--quiet", "--network", "none", busybox, *show).stdout.split() == ["lo"]
    assert "eth0" in testbed.cli("run", "--rm", "--quiet", "--network", "pod", busybox, *show).stdout.split()
    host = testbed.cli("run", "--rm", "--quiet", "--network", "host", busybox, *show).stdout.split()
    assert set(host) >= {p.name for p in Path("/sys/class/net").iterdir()} - {"bonding_masters"}


def test_no_plaintext_reaches_a_disk(testbed: testbeds.Testbed, busybox: str, canary: str) -> None:
    pod = testbed.cli("run", "-d", busybox, "sh", "-c", "sha256sum /opt/secret; sleep 60").stdout.strip()
    wait_until(lambda: "/opt/secret" in testbed.cli("logs", pod).stdout)
    os.sync()
    assert testbed.find_plaintext(canary.encode()) == []  # while it runs
    testbed.cli("rm", "-f", pod)
    assert testbed.find_plaintext(canary.encode()) == []  # and after
    assert list((testbed.state / "cache/blobs").glob("*.sealed"))  # the image is there, sealed


def test_commands_that_do_not_exist(testbed: testbeds.Testbed, busybox: str) -> None:
    done = testbed.cli("run", "--rm", busybox, "/no/such/program", check=False)
    assert done.returncode == 127
    assert "error exec-failed" in done.stderr


def test_doctor_says_what_this_machine_is(testbed: testbeds.Testbed) -> None:
    done = testbed.cli("doctor", "--json", check=False)
    report = json.loads(done.stdout)
    assert "simulated" in json.dumps(report)
    assert done.returncode == 0, report


def test_twenty_pods_at_once(testbed: testbeds.Testbed, sources: Path) -> None:
    root = sources.parent / "root"
    references = []
    for number in range(20):
        (root / "opt/number").write_text(f"{number}\n")
        source = testbeds.make_image(sources, f"many{number}", root, "--config.cmd", "cat", "--config.cmd", "/opt/number")
        references.append(testbed.publish(source, f"many{number}"))
    (root / "opt/number").unlink()
    processes = [testbed.spawn("run", "--rm", "--quiet", reference) for reference in references]
    outputs = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0] * 20
    assert [out for out, _ in outputs] == [b"%d\n" % number for number in range(20)]


@pytest.mark.parametrize("delay", [0.05, 0.15, 0.3])
def test_a_pod_that_is_removed_while_it_starts(testbed: testbeds.Testbed, busybox: str, delay: float) -> None:
    process = testbed.spawn("run", "--quiet", "--name", "starting", busybox, "sleep", "60")
    time.sleep(delay)
    until = time.monotonic() + 20
    while testbed.cli("rm", "-f", "starting", check=False).returncode:  # not there yet
        assert time.monotonic() < until
    _, errors = process.communicate(timeout=20)
    assert process.returncode in (143, -signal.SIGTERM, 137)
    said = [line for line in errors.splitlines() if line.startswith(b"error ")]
    assert not said  # it was removed; nothing died of itself


def test_a_terminal_that_is_only_looked_at(testbed: testbeds.Testbed, busybox: str) -> None:
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (33, 99))
    command = [testbeds.ENCLAVE_CC, "run", "--rm", "--quiet", "-t", busybox, "sh", "-c", "stty size; echo end"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=slave, env=testbed.environment, check=False, timeout=60)
    assert done.returncode == 0
    assert os.read(master, 4096) == b"33 99\r\nend\r\n"
    os.close(slave)
    os.close(master)
