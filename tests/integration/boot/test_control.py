"""The control socket of a running container: exec, signals, terminals, and everything a hostile supervisor may try."""

import contextlib
import fcntl
import os
import select
import signal
import socket
import struct
import subprocess
import termios
import time
from pathlib import Path

import pytest
from boot_container import DEADLINE, Container, Run, receive, send

from enclave_cc.enclave.boot import capabilities
from enclave_cc.wire.control import frame, message
from enclave_cc.wire.control.status import State
from enclave_cc.wire.launch.combination import DEFAULT_CAPABILITIES

pytestmark = pytest.mark.root
DOCKER = capabilities.parse_names(DEFAULT_CAPABILITIES)


@pytest.fixture
def sleeper(run: Run) -> Container:
    container = run("sleep", "1000", allow_exec=True, env=["A=1"], hostname="box", capabilities=DOCKER)
    container.wait_state("running")
    return container


def _refusal(reply: message.Reply) -> tuple[str, int]:
    assert isinstance(reply, message.Refused), reply
    return reply.error.code, reply.exit_code


def _read_until(fd: int, wanted: bytes) -> bytes:
    data = b""
    while wanted not in data:
        assert select.select([fd], [], [], DEADLINE)[0], f"only {data!r} arrived"
        data += os.read(fd, 4096)
    return data


def test_state(sleeper: Container) -> None:
    reply = sleeper.ask(message.StateRequest())
    assert isinstance(reply, message.StateReply)
    assert reply.status == sleeper.status
    assert reply.status.state is State.RUNNING


def test_exec_joins_the_workload(sleeper: Container) -> None:
    script = "echo $$; hostname; cat; echo $A $B; pwd; ps | grep -c sleep; grep Cap /proc/self/status; exit 5"
    code, out = sleeper.execute("sh", "-c", script, stdin=b"typed\n", env=("B=2",), cwd="/home")
    lines = out.splitlines()
    assert code == 5
    assert 1 < int(lines[0]) < 100
    assert lines[1:5] == ["box", "typed", "1 2", "/home"]
    assert int(lines[5]) >= 1
    assert lines[8].split() == ["CapEff:", f"{DOCKER:016x}"]


def test_exec_as_another_user(sleeper: Container) -> None:
    code, out = sleeper.execute("sh", "-c", "id -u; echo $HOME; cat /etc/secret", user="bob")
    assert code == 1
    assert out.startswith("1000\n/home/bob\n")
    assert "Permission denied" in out


def test_exec_shares_the_file_system(sleeper: Container) -> None:
    assert sleeper.execute("sh", "-c", "echo here > /tmp/note")[0] == 0
    assert sleeper.execute("cat", "/tmp/note") == (0, "here\n")


@pytest.mark.parametrize(("command", "code"), [("nosuch", 127), ("/etc/passwd", 126)])
def test_exec_of_what_cannot_be_executed(sleeper: Container, command: str, code: int) -> None:
    found, words = sleeper.execute(command)
    assert found == code
    assert words.startswith("exec-failed")


def test_exec_makes_no_directories(sleeper: Container) -> None:
    code, words = sleeper.execute("pwd", cwd="/not/there")
    assert (code, words.split(":")[0]) == (55, "launch-failed")


def test_exec_needs_the_owners_leave(run: Run) -> None:
    container = run("sleep", "1000", allow_exec=False)
    container.wait_state("running")
    assert container.execute("id") == (54, "launch-denied: the owner's launch policy does not allow exec")


def test_exec_with_a_terminal(sleeper: Container) -> None:
    with sleeper.connect() as connection:
        request = message.ExecRequest("t", ("sh", "-c", "tty; stty size; read x; echo got $x"), terminal=True, rows=30, columns=90)
        reply, fds = send(connection, request)
        assert isinstance(reply, message.Started)
        (master,) = fds
        assert b"/dev/pts/" in _read_until(master, b"30 90")
        assert sleeper.ask(message.ResizeRequest(10, 20, "t")) == message.Done()
        assert struct.unpack("HHHH", fcntl.ioctl(master, termios.TIOCGWINSZ, bytes(8)))[:2] == (10, 20)
        os.write(master, b"words\n")
        _read_until(master, b"got words")
        assert receive(connection)[0] == message.Exited(0)
        os.close(master)


def test_a_terminal_hangs_up_with_its_supervisor(sleeper: Container) -> None:
    with sleeper.connect() as connection:
        request = message.ExecRequest(
            "t", ("sh", "-c", "trap 'echo hup > /tmp/hup; exit' HUP; echo up; while true; do sleep 0.1; done"), terminal=True
        )
        _, (master,) = send(connection, request)
        _read_until(master, b"up")
    os.close(master)
    end = time.monotonic() + DEADLINE
    while sleeper.execute("cat", "/tmp/hup") != (0, "hup\n"):
        assert time.monotonic() < end


def test_signals_reach_exec_and_workload(run: Run) -> None:
    container = run(
        "sh", "-c", "trap 'echo usr1' USR1; trap 'exit 9' TERM; echo up; while true; do sleep 0.05; done", allow_exec=True
    )
    out = container.process.stdout
    assert out is not None
    container.wait_state("running")
    assert out.readline() == b"up\n"
    with container.connect() as connection, open("/dev/null", "r+b") as null:
        reply, _ = send(connection, message.ExecRequest("e", ("sleep", "1000")), (null.fileno(),) * 3)
        assert isinstance(reply, message.Started)
        assert container.ask(message.SignalRequest(signal.SIGTERM, "e")) == message.Done()
        assert receive(connection)[0] == message.Exited(143)
    assert container.ask(message.SignalRequest(signal.SIGUSR1)) == message.Done()
    assert out.readline() == b"usr1\n"
    assert container.ask(message.StopRequest()) == message.Done()
    assert container.wait()[0] == 9


def test_stop_sends_the_images_signal(run: Run) -> None:
    container = run("sh", "-c", "trap 'exit 4' INT; echo up; while true; do sleep 0.05; done", stop_signal=signal.SIGINT)
    assert container.process.stdout is not None
    container.process.stdout.readline()
    container.wait_state("running")
    assert container.ask(message.StopRequest()) == message.Done()
    assert container.wait()[0] == 4


def test_pid_1_without_a_handler_dies_of_kill_only(sleeper: Container) -> None:
    assert sleeper.ask(message.SignalRequest(signal.SIGTERM)) == message.Done()
    assert sleeper.execute("true")[0] == 0
    assert sleeper.ask(message.SignalRequest(signal.SIGKILL)) == message.Done()
    assert sleeper.wait()[0] == 137
    assert sleeper.status.exit_code == 137


def test_signals_to_boot_init_are_the_workloads(run: Run) -> None:
    container = run("sh", "-c", "trap 'exit 3' TERM; echo up; while true; do sleep 0.05; done")
    assert container.process.stdout is not None
    container.process.stdout.readline()
    container.wait_state("running")
    os.kill(_boot_pid(container), signal.SIGTERM)
    assert container.wait()[0] == 3


def _boot_pid(container: Container) -> int:
    (pid,) = _children(container.process.pid)
    return pid


def test_killing_boot_init_kills_everything(run: Run) -> None:
    marker = str(time.monotonic_ns() % 10**7 + 10**7)
    container = run("sh", "-c", f"sleep {marker} & sleep {marker}")
    container.wait_state("running")
    os.kill(_boot_pid(container), signal.SIGKILL)
    container.wait()
    end = time.monotonic() + DEADLINE
    while subprocess.run(["pgrep", "-f", f"sleep {marker}"], check=False, capture_output=True).stdout:
        assert time.monotonic() < end


def test_a_terminal_for_the_workload(run: Run) -> None:
    script = "tty; stty size; ls -l /dev/console; echo $TERM; read line; echo read $line; exit 6"
    container = run("sh", "-c", script, terminal=True)
    with container.connect() as connection:
        reply, fds = send(connection, message.TerminalRequest(25, 70))
    assert reply == message.Done()
    (master,) = fds
    out = _read_until(master, b"xterm")
    assert b"/dev/pts/0" in out
    assert b"25 70" in out
    assert b"/dev/console" in out
    assert container.wait_state("running")
    assert container.ask(message.ResizeRequest(11, 22)) == message.Done()
    assert struct.unpack("HHHH", fcntl.ioctl(master, termios.TIOCGWINSZ, bytes(8)))[:2] == (11, 22)
    os.write(master, b"hello\n")
    _read_until(master, b"read hello")
    assert container.wait()[0] == 6
    os.close(master)


def test_a_short_workload_with_a_terminal_loses_no_output(run: Run) -> None:
    container = run("echo", "brief", terminal=True)
    time.sleep(0.2)  # a workload that did not wait would be gone by now
    with container.connect() as connection:
        _, (master,) = send(connection, message.TerminalRequest())
    _read_until(master, b"brief")
    os.close(master)
    assert container.wait()[0] == 0


def test_a_terminal_that_nobody_fetches_ends_the_start(run: Run) -> None:
    container = run("echo", "x", terminal=True, start_deadline=0.5)
    assert container.wait()[0] == 7
    error = container.status.error
    assert error is not None
    assert (error.code, error.what) == ("deadline", "the supervisor did not fetch the terminal in time")


def test_no_terminal_to_fetch(sleeper: Container) -> None:
    assert _refusal(sleeper.ask(message.TerminalRequest())) == ("wrong-state", 3)
    assert _refusal(sleeper.ask(message.ResizeRequest(1, 1))) == ("wrong-state", 3)


def test_unknown_targets(sleeper: Container) -> None:
    assert _refusal(sleeper.ask(message.SignalRequest(15, "nobody"))) == ("not-found", 3)
    assert _refusal(sleeper.ask(message.ResizeRequest(1, 1, "nobody"))) == ("not-found", 3)


def test_an_exec_id_is_used_once_at_a_time(sleeper: Container) -> None:
    with sleeper.connect() as connection, open("/dev/null", "r+b") as null:
        fds = (null.fileno(),) * 3
        send(connection, message.ExecRequest("one", ("sleep", "1000")), fds)
        assert _refusal(sleeper.ask(message.ExecRequest("one", ("true",)), fds)) == ("already-exists", 3)


@pytest.mark.parametrize("count", [0, 1, 2, 4, 9])
def test_exec_wants_three_descriptors(sleeper: Container, count: int) -> None:
    with open("/dev/null", "r+b") as null:
        code, _ = _refusal(sleeper.ask(message.ExecRequest("e", ("true",)), (null.fileno(),) * count))
    assert code in ("malformed", "too-large")
    assert sleeper.execute("true")[0] == 0


def test_hostile_bytes_close_only_their_connection(sleeper: Container) -> None:
    for data in (b"\0\0\0\0", b"\xff" * 8, b"\0\0\0\x02{]", frame.encode_frame({"op": "state"}), frame.encode_frame({}) * 2):
        with sleeper.connect() as connection:
            connection.sendall(data)
            assert isinstance(receive(connection)[0], message.Refused)
            assert connection.recv(1) == b""
    assert isinstance(sleeper.ask(message.StateRequest()), message.StateReply)


def test_silent_connections_delay_nobody_and_are_bounded(sleeper: Container) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(60):
            stack.enter_context(sleeper.connect()).sendall(b"\0")
        before = time.monotonic()
        assert isinstance(sleeper.ask(message.StateRequest()), message.StateReply)
        assert time.monotonic() - before < 2
        for _ in range(4):
            stack.enter_context(sleeper.connect()).sendall(b"\0")
        turned_away = stack.enter_context(sleeper.connect())
        assert turned_away.recv(1) == b""
    assert isinstance(_retry(sleeper), message.StateReply)


def _retry(container: Container) -> message.Reply | None:
    end = time.monotonic() + DEADLINE
    while time.monotonic() < end:
        with contextlib.suppress(EOFError, ConnectionError):
            return container.ask(message.StateRequest())
        time.sleep(0.01)
    return None


def test_many_execs_at_once(sleeper: Container) -> None:
    with contextlib.ExitStack() as stack:
        null = stack.enter_context(open("/dev/null", "r+b")).fileno()
        connections = [stack.enter_context(sleeper.connect()) for _ in range(30)]
        for number, connection in enumerate(connections):
            request = message.ExecRequest(f"e{number}", ("sh", "-c", f"exit {number}"))
            socket.send_fds(connection, [message.encode_request(request)], [null] * 3)
        for number, connection in enumerate(connections):
            assert isinstance(receive(connection)[0], message.Started)
            assert receive(connection)[0] == message.Exited(number)
    descriptors = list(Path(f"/proc/{_boot_pid(sleeper)}/fd").iterdir())
    assert len(descriptors) < 15, descriptors


def test_an_exec_survives_its_supervisor(sleeper: Container) -> None:
    with sleeper.connect() as connection, open("/dev/null", "r+b") as null:
        request = message.ExecRequest("e", ("sh", "-c", "sleep 0.3; echo done > /tmp/done"))
        send(connection, request, (null.fileno(),) * 3)
    end = time.monotonic() + DEADLINE
    while sleeper.execute("cat", "/tmp/done") != (0, "done\n"):
        assert time.monotonic() < end


def test_the_end_of_the_workload_ends_its_execs(run: Run) -> None:
    container = run("sh", "-c", "trap 'exit 2' TERM; while true; do sleep 0.05; done", allow_exec=True)
    container.wait_state("running")
    with container.connect() as connection, open("/dev/null", "r+b") as null:
        send(connection, message.ExecRequest("e", ("sleep", "1000")), (null.fileno(),) * 3)
        container.ask(message.StopRequest())
        assert receive(connection)[0] == message.Exited(137)
    assert container.wait()[0] == 2


def test_without_the_rootfs_server_the_workload_is_killed(run: Run) -> None:
    container = run("sleep", "1000", server=True)
    container.wait_state("running")
    # In boot init's PID namespace, its own child: the workload is one namespace deeper.
    servers = [pid for pid in _children(_boot_pid(container)) if _depth(pid) == _depth(_boot_pid(container))]
    os.kill(servers[0], signal.SIGKILL)
    assert container.wait()[0] == 57
    status = container.status
    assert status.state is State.ERROR
    assert status.error is not None
    assert status.error.code == "app-died"


def _children(pid: int) -> list[int]:
    found = subprocess.run(["pgrep", "-P", str(pid)], check=True, capture_output=True, text=True)
    return [int(line) for line in found.stdout.split()]


def _depth(pid: int) -> int:
    """Nested PID namespaces that the process is in."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(len(line.split()) for line in lines if line.startswith("NSpid:"))


def test_exec_runs_no_code_of_the_workload(sleeper: Container) -> None:
    """An exec still has boot init's rights when it is inside: nothing of the rootfs may be imported or loaded."""
    evil = "import os\nos.system('touch /tmp/evil')\nopen('/tmp/evil','w').write('x')\n"
    prefix = Path(os.__file__).parent
    script = f"mkdir -p {prefix} /work && cd {prefix} && for m in array encodings codecs re json idna; do cat > $m.py; done"
    assert sleeper.execute("sh", "-c", script, stdin=evil.encode())[0] == 0
    assert sleeper.execute("sh", "-c", "mkfifo /etc/nsswitch.conf; rm /etc/passwd; mknod /etc/passwd p; true")[0] == 0
    code, words = sleeper.execute("id", user="bob")  # a pipe in place of /etc/passwd: refused, not waited for
    assert (code, words.split(":")[0]) == (55, "launch-failed")
    assert sleeper.execute("ls", "/tmp/evil")[0] != 0
