"""The workload's process: who it is, what it sees, what it cannot reach."""

import os
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from boot_container import Run

from enclave_cc.enclave.boot import capabilities
from enclave_cc.wire.control.status import State
from enclave_cc.wire.launch.combination import DEFAULT_CAPABILITIES

pytestmark = pytest.mark.root

DOCKER = capabilities.parse_names(DEFAULT_CAPABILITIES)


def test_exit_code_and_output_pass_through(run: Run) -> None:
    container = run("sh", "-c", "echo out; echo err >&2; exit 7", env=["A=1"])
    assert container.wait() == (7, "out\n", "err\n")
    status = container.status
    assert (status.state, status.exit_code, status.error) == (State.EXITED, 7, None)
    assert list(status.stages) == ["running", "spawn"]


def test_death_by_signal_is_128_plus_n(run: Run) -> None:
    container = run("sh", "-c", "trap - TERM; sh -c 'kill -9 $$'; exit $?")
    assert container.wait()[0] == 137


def test_workload_is_pid_1_of_its_own_namespace(run: Run) -> None:
    _, out, _ = run("sh", "-c", "echo $$; ls /proc | grep -c '^[0-9]'").wait()
    pid, count = out.split()
    assert pid == "1"
    assert int(count) <= 4  # sh, ls, grep and a subshell: not boot init, not the host


@pytest.mark.parametrize(
    ("user", "groups", "expected"),
    [
        ("", [], "uid=0(root) gid=0(root) groups=0(root)"),
        ("bob", [], "uid=1000(bob) gid=1001(bob) groups=10(wheel),29(audio),1001(bob)"),
        ("1000", [], "uid=1000(bob) gid=1001(bob) groups=10(wheel),29(audio),1001(bob)"),
        ("bob:audio", [], "uid=1000(bob) gid=29(audio) groups=29(audio)"),
        ("4242", [], "uid=4242 gid=0(root) groups=0(root)"),
        ("4242:4343", ["audio", "77"], "uid=4242 gid=4343 groups=29(audio),77,4343"),
    ],
)
def test_user(run: Run, user: str, groups: list[str], expected: str) -> None:
    _, out, err = run("id", user=user, groups=groups).wait()
    found, wanted = (dict(part.split("=") for part in text.split()) for text in (out, expected))
    assert {key: set(value.split(",")) for key, value in found.items()} == {
        key: set(value.split(",")) for key, value in wanted.items()
    }, err


def test_unknown_user_is_refused(run: Run) -> None:
    container = run("id", user="mallory")
    assert container.wait()[0] == 55
    assert container.status.error is not None
    assert container.status.error.code == "launch-failed"
    assert "mallory" in container.status.error.what


def _read_sets(out: str) -> dict[str, int]:
    return {name: int(value, 16) for name, value in re.findall(r"Cap(\w+):\s+(\w+)", out)}


def test_capabilities_of_root_are_the_statements(run: Run) -> None:
    _, out, _ = run("cat", "/proc/self/status", capabilities=DOCKER).wait()
    assert _read_sets(out) == {"Inh": 0, "Prm": DOCKER, "Eff": DOCKER, "Bnd": DOCKER, "Amb": 0}
    assert "NoNewPrivs:\t0" in out
    assert "Seccomp:\t2" in out


def test_other_users_have_none(run: Run) -> None:
    _, out, _ = run("cat", "/proc/self/status", user="bob", capabilities=DOCKER, no_new_privileges=True).wait()
    assert _read_sets(out) == {"Inh": 0, "Prm": 0, "Eff": 0, "Bnd": DOCKER, "Amb": 0}
    assert "NoNewPrivs:\t1" in out


def test_other_users_are_held_by_file_modes(run: Run) -> None:
    container = run("cat", "/etc/secret", user="bob", capabilities=DOCKER)
    code, out, err = container.wait()
    assert (code, out) == (1, "")
    assert "Permission denied" in err


def test_environment_is_the_statements_and_dockers_defaults(run: Run) -> None:
    _, out, _ = run("env", user="bob", env=["A=1", "A=2", "B=x=y"]).wait()
    found = dict(line.split("=", 1) for line in out.splitlines())
    assert found == {
        "A": "2",
        "B": "x=y",
        "HOME": "/home/bob",
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    }


def test_cwd_is_made(run: Run) -> None:
    _, out, _ = run("sh", "-c", "pwd; stat -c '%a %u' .", cwd="/not/there", user="bob").wait()
    assert out == "/not/there\n755 0\n"


@pytest.mark.parametrize(
    ("command", "code", "words"),
    [
        ("nosuch", 127, "not found in $PATH"),
        ("/bin/nosuch", 127, "no such file"),
        ("noexec", 126, "Permission denied"),
        ("/etc", 126, "Permission denied"),
        ("notelf", 126, "Exec format error"),
    ],
)
def test_what_cannot_be_executed(run: Run, command: str, code: int, words: str) -> None:
    container = run(command)
    assert container.wait() == (code, "", "")
    status = container.status
    assert status.state is State.ERROR
    assert status.exit_code == code
    assert status.error is not None
    assert status.error.code == "exec-failed"
    assert words in status.error.what


def test_nothing_leaks(run: Run) -> None:
    os.environ["BOOT_SECRET"] = "x"
    try:
        extra = os.open("/etc/passwd", os.O_RDONLY)
        os.set_inheritable(extra, True)
        _, out, _ = run("sh", "-c", "ls /proc/self/fd; env").wait()
    finally:
        del os.environ["BOOT_SECRET"]
        os.close(extra)
    lines = out.split()
    assert "BOOT_SECRET=x" not in lines
    assert [int(line) for line in lines if line.isdigit()] == [0, 1, 2, 3]  # 3 is ls's own


def test_signals_and_masks_are_defaults(run: Run) -> None:
    _, out, _ = run("grep", "-E", "^Sig(Blk|Ign|Cgt)", "/proc/self/status").wait()
    # 32 and 33 belong to the C library, which lets nobody set them: they are as whoever started the test left them.
    ours = ~(0b11 << 31)
    assert [int(line.split()[1], 16) & ours for line in out.splitlines()] == [0] * 3


def test_limits(run: Run) -> None:
    _, out, _ = run("cat", "/proc/self/limits", rlimits=[[7, 100, 200]]).wait()
    assert re.search(r"Max open files +100 +200", out)


def test_hostname_is_its_own(run: Run) -> None:
    before = os.uname().nodename
    assert run("hostname", hostname="enclave").wait()[1] == "enclave\n"
    assert os.uname().nodename == before


def test_surroundings(run: Run) -> None:
    script = "cat /proc/mounts; echo; ls -l /dev; cat /proc/keys; ls /sys/firmware; echo x > /proc/sys/kernel/hostname"
    _, out, err = run("sh", "-c", script, capabilities=DOCKER).wait()
    mounts = {line.split()[1]: line.split() for line in out.split("\n\n")[0].splitlines()}
    assert mounts["/proc"][2] == "proc"
    assert mounts["/sys"][3].startswith("ro,nosuid,nodev,noexec")
    assert mounts["/dev/pts"][2] == "devpts"
    assert mounts["/dev/mqueue"][2] == "mqueue"
    assert "noswap" in mounts["/dev/shm"][3]
    assert mounts["/proc/sys"][3].startswith("ro,")
    for device in ("null", "zero", "full", "random", "urandom", "tty"):
        assert re.search(rf"crw-rw-rw-.* {device}\n", out)
    assert "Read-only" in err
    assert out.endswith("tty\nurandom\nzero\n") or out.rstrip().endswith("zero")


def test_read_only_root_keeps_scratch_writable(run: Run) -> None:
    script = "touch /x; touch /home/bob/y && ls /home/bob; touch /dev/shm/z && echo shm; touch /tmp/t"
    _, out, err = run("sh", "-c", script, read_only_root=True, scratch=["/home/bob"]).wait()
    assert out == "y\nshm\n"
    assert err.count("Read-only file system") == 2


def test_file_systems_in_memory(run: Run) -> None:
    script = "cat /proc/mounts; ls -a /etc; touch /etc/x /home/x /tmp/x; stat -c %a /home/bob"
    script += "; cp /bin/busybox /home/bob/sh; /home/bob/sh"
    places = [["/etc", 1 << 20, 0o755, True], ["/home/bob", 0, 0o700, False]]
    _, out, err = run("/bin/busybox", "sh", "-c", script, tmpfs=places, read_only_root=True).wait()
    mounts = {line.split()[1]: line.split() for line in out.splitlines() if line.startswith("tmpfs ")}
    assert mounts["/etc"][2] == mounts["/home/bob"][2] == "tmpfs"
    assert {"size=1024k", "noswap", "nosuid", "nodev"} <= set(mounts["/etc"][3].split(","))
    assert "noexec" in mounts["/home/bob"][3]
    assert "passwd" not in out and "700" in out.splitlines()  # what the image has there is covered
    assert "/etc/x" not in err and "/tmp/x: Read-only" in err and "/home/bob/sh: Permission denied" in err


def test_more_of_the_kernel_can_be_hidden_and_sealed(run: Run) -> None:
    script = "wc -c < /proc/uptime; ls /proc/fs; wc -c < /proc/version; grep -c . /proc/mounts; grep ' /proc/self/' /proc/mounts"
    masked, sealed = ["/proc/uptime", "/proc/fs", "/proc/no/such"], ["/proc/version", "/sys/none"]
    _, out, err = run("sh", "-c", script, masked=masked, sealed=sealed).wait()
    lines = out.splitlines()
    assert (lines[0], err) == ("0", "")
    assert int(lines[1]) > 10


def test_ambient_capabilities(run: Run) -> None:
    """A user other than root has them, and what it executes."""
    bind = 1 << 10
    fields = {"user": "bob", "capabilities": DOCKER, "ambient": bind, "no_new_privileges": True}
    _, out, _ = run("sh", "-c", "grep ^Cap /proc/self/status", **fields).wait()
    found = {line.split(":")[0]: int(line.split()[1], 16) for line in out.splitlines()}
    assert found == {"CapInh": bind, "CapPrm": bind, "CapEff": bind, "CapBnd": DOCKER, "CapAmb": bind}


def test_volumes_and_files(run: Run, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/f").write_text("host")
    (tmp_path / "single").write_text("one")
    (tmp_path / "resolv.conf").write_text("nameserver 192.0.2.1\n")
    (tmp_path / "hosts").write_text("127.0.0.1 localhost\n")
    container = run(
        "sh",
        "-c",
        "cat /data/f /ro/f /one /etc/resolv.conf /etc/hosts; echo new > /data/g; echo no > /ro/g; echo mine > /etc/hosts",
        host={
            "volumes/v1": str(tmp_path / "data"),
            "volumes/v2": str(tmp_path / "data"),
            "volumes/v3": str(tmp_path / "single"),
            "files/resolv.conf": str(tmp_path / "resolv.conf"),
            "files/hosts": str(tmp_path / "hosts"),
        },
        volumes=[["v1", "/data", False], ["v2", "/ro", True], ["v3", "/one", True]],
        files=["resolv.conf", "hosts", "hostname"],
    )
    _, out, err = container.wait()
    assert out == "hosthostonenameserver 192.0.2.1\n127.0.0.1 localhost\n"
    assert "/ro/g: Read-only" in err
    assert (tmp_path / "data/g").read_text() == "new\n"
    assert (tmp_path / "hosts").read_text() == "127.0.0.1 localhost\n"  # what the workload wrote stays inside


def test_a_generated_file_is_not_written_into_the_kernel(run: Run, image: Path, tmp_path: Path) -> None:
    """An image whose /etc/hostname leads to /proc/sysrq-trigger would have the node's kernel do what a name begins with."""
    (tmp_path / "hostname").write_text("500\n")
    root = tmp_path / "image"
    shutil.copytree(image, root, symlinks=True)
    (root / "etc/hostname").symlink_to("/proc/self/oom_score_adj")
    container = run(
        *("sh", "-c", "cat /proc/self/oom_score_adj; cat /proc/mounts | grep -c '^proc /proc '"),
        image=str(root),
        host={"files/hostname": str(tmp_path / "hostname")},
        files=["hostname"],
    )
    own = Path("/proc/self/oom_score_adj").read_text()
    assert container.wait()[:2] == (0, f"{own}1\n")


@pytest.mark.parametrize("order", [("v1", "v2"), ("v2", "v1")])
@pytest.mark.parametrize("target", ["/etc", "../etc", "/proc", "/"])
def test_a_link_in_one_volume_does_not_lead_another_astray(run: Run, tmp_path: Path, order: tuple[str, str], target: str) -> None:
    """HOST-009: both places are allowed, and what lies in the first is the host's."""
    for name in ("outer", "inner"):
        (tmp_path / name).mkdir()
    (tmp_path / "outer/sub").symlink_to(target)
    (tmp_path / "inner/secret").write_text("host's\n")
    places = {"v1": ["v1", "/data", False], "v2": ["v2", "/data/sub", False]}
    container = run(
        "cat",
        "/etc/secret",
        host={"volumes/v1": str(tmp_path / "outer"), "volumes/v2": str(tmp_path / "inner")},
        volumes=[places[name] for name in order],
    )
    assert container.wait()[:2] == (55, "")
    assert container.status.error is not None
    assert container.status.error.code == "launch-failed"


def test_a_volume_inside_another(run: Run, tmp_path: Path) -> None:
    for name in ("outer", "inner"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "f").write_text(f"{name} ")
    (tmp_path / "one").write_text("one ")
    container = run(
        *("cat", "/link/f", "/data/deep/sub/f", "/data/one"),
        host={"volumes/v1": str(tmp_path / "outer"), "volumes/v2": str(tmp_path / "inner"), "volumes/v3": str(tmp_path / "one")},
        volumes=[["v2", "/data/deep/sub", True], ["v3", "/data/one", True], ["v1", "/link", False]],
    )
    assert container.wait()[:2] == (0, "outer inner one ")


def test_a_volume_that_the_host_did_not_give(run: Run) -> None:
    container = run("true", volumes=[["gone", "/data", False]])
    assert container.wait()[0] == 58
    assert container.status.error is not None
    assert container.status.error.code == "mount-failed"


def test_boot_init_is_out_of_reach(run: Run) -> None:
    """APP-001: with docker's capabilities there is no way to boot init, the host's root, or the pod's sockets."""
    probes = {
        "old root": "ls /run/enclave-cc /mnt 2>&1; cat /proc/1/root/etc/secret",
        "mounts": "grep -c -E 'fuse|erofs|enclave-cc' /proc/mounts",
        "ptrace": "ls /proc/1/fd > /dev/null && echo own",
        "mount": "mount -t tmpfs none /tmp; echo $?",
        "umount": "umount /proc/sys; echo $?",
        "kill": "kill -9 2 2>&1; true",
    }
    container = run("sh", "-c", "; echo =; ".join(probes.values()), capabilities=DOCKER)
    _, out, err = container.wait()
    answers = dict(zip(probes, out.split("=\n"), strict=True))
    assert "root only" in answers["old root"]  # its own root, seen through its own PID 1
    assert "agent.sock" not in answers["old root"]
    assert answers["mounts"] == "0\n"
    assert answers["mount"] == "1\n"
    assert answers["umount"] == "1\n"
    assert "denied" in err or "not permitted" in err


def test_seccomp_and_namespaces(run: Run) -> None:
    # A user namespace would give back what the bounding set took.
    code, _, err = run("/bin/busybox", "unshare", "-U", "true", user="bob").wait()
    assert code != 0
    assert "not permitted" in err


def test_background_children_end_with_the_workload(run: Run) -> None:
    marker = f"{time.monotonic_ns() % 10**7 + 10**6}"
    assert run("sh", "-c", f"sleep {marker} & exit 3").wait()[0] == 3
    assert subprocess.run(["pgrep", "-f", f"sleep {marker}"], check=False, capture_output=True).stdout == b""
