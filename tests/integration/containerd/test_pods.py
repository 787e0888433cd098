"""Pods over CRI: what a cluster does with them. Each test runs with ordinary runc pods and with ours on one containerd."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import grpc
import pytest
from cri_messages import (
    ContainerState,
    DnsConfig,
    Int64Value,
    LinuxContainerResources,
    Mount,
    SandboxState,
    Seccomp,
    SecurityProfile,
)
from kubelet import OURS, Kubelet, Pod, wait_until

pytestmark = pytest.mark.root

FOREVER = "while :; do sleep 0.1; done"


# --- life cycle


def test_output_and_exit_code(kubelet: Kubelet) -> None:
    pod = kubelet.run_pod()
    container = pod.create("/bin/sh", "-c", "echo out; echo err >&2; exit 7")
    assert pod.cri.container_status(container).state == ContainerState.CREATED
    pod.cri.start(container)
    status = pod.wait(container)
    assert (status.exit_code, status.reason) == (7, "Error")
    assert status.created_at <= status.started_at <= status.finished_at
    assert pod.output(container) == "out\n"
    assert pod.output(container, "stderr") == "err\n"
    assert pod.run("true", name="good")[0] == 0


def test_the_images_own_command(kubelet: Kubelet) -> None:
    """The image says /bin/sh; without input it ends at once."""
    pod = kubelet.run_pod()
    status = pod.wait(pod.start())
    assert (status.exit_code, status.reason) == (0, "Completed")


def test_arguments_and_environment(kubelet: Kubelet) -> None:
    pod = kubelet.run_pod()
    container = pod.start("/bin/sh", "-c", 'pwd; echo "$A" "$@"', args=("sh", "x y", "z"), env={"A": "1=2"}, working_dir="/tmp")
    assert pod.wait(container).exit_code == 0
    assert pod.output(container) == "/tmp\n1=2 x y z\n"


def test_many_containers_in_one_pod(kubelet: Kubelet) -> None:
    pod = kubelet.run_pod()
    server = pod.start("/bin/busybox", "httpd", "-f", "-p", "127.0.0.1:8080", "-h", "/etc", name="server")
    script = "for i in $(seq 100); do wget -q -O - http://127.0.0.1:8080/group && exit; sleep 0.1; done"
    containers = [pod.shell(f"echo {n}; hostname; {FOREVER}", name=f"c{n}") for n in range(3)]
    assert pod.run(script, name="client") == (0, "root:x:0:\napp:x:1000:\naudio:x:29:app\n")
    for number, container in enumerate(containers):
        assert pod.config.metadata is not None
        expected = f"{number}\n{pod.config.metadata.name}\n"
        wait_until(lambda c=container, e=expected: pod.output(c) == e)
    assert {c.id for c in pod.cri.list_containers(pod.id)} >= {server, *containers}
    assert count_shims(pod) == 1
    pod.cri.stop(containers[0], 0)
    pod.cri.remove(containers[0])
    assert pod.cri.container_status(containers[1]).state == ContainerState.RUNNING  # its siblings live on


def count_shims(pod: Pod) -> int:
    """Shim processes that serve this pod: those whose command line has its id."""
    found = 0
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            words = (directory / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        found += pod.id.encode() in words and any(b"containerd-shim" in word for word in words[:3])
    return found


def test_restarts(kubelet: Kubelet) -> None:
    pod = kubelet.run_pod()
    for attempt in range(3):
        container = pod.shell(f"echo attempt {attempt}; exit {attempt}")
        assert pod.wait(container).exit_code == attempt
        assert pod.output(container) == f"attempt {attempt}\n"
        if attempt != 1:  # the kubelet keeps the last dead one
            pod.cri.remove(container)
    assert pod.cri.pod_status(pod.id).state == SandboxState.READY


def test_init_containers(kubelet: Kubelet, tmp_path: Path) -> None:
    volume = tmp_path / "empty-dir"
    volume.mkdir()
    mounts = (Mount("/shared", str(volume)),)
    pod = kubelet.run_pod()
    for number in (1, 2):
        init = pod.shell(f"echo step {number} >> /shared/steps", name=f"init{number}", mounts=mounts)
        assert pod.wait(init).exit_code == 0
    assert pod.run("cat /shared/steps", mounts=mounts) == (0, "step 1\nstep 2\n")


def test_a_pod_is_stopped_with_what_runs_in_it(kubelet: Kubelet) -> None:
    pod = kubelet.run_pod()
    container = pod.shell(FOREVER)
    pod.cri.stop_pod(pod.id)
    assert pod.cri.pod_status(pod.id).state == SandboxState.NOTREADY
    assert pod.cri.container_status(container).state == ContainerState.EXITED
    pod.cri.stop_pod(pod.id)  # again is well
    pod.cri.remove_pod(pod.id)
    assert pod.id not in {p.id for p in pod.cri.list_pods()}
    pod.cri.remove_pod(pod.id)


def test_a_created_container_is_removed_without_being_started(kubelet: Kubelet) -> None:
    pod = kubelet.run_pod()
    pod.cri.remove(pod.create("/bin/sh"))
    assert pod.cri.list_containers(pod.id) == ()


def test_a_command_that_does_not_exist(kubelet: Kubelet) -> None:
    pod = kubelet.run_pod()
    container = pod.create("/no/such/program")
    with pytest.raises(grpc.RpcError) as caught:
        pod.cri.start(container)
    assert "/no/such/program" in str(caught.value.details())
    assert pod.cri.container_status(container).state == ContainerState.EXITED
    assert pod.run("echo next", name="next") == (0, "next\n")


# --- stopping


def test_a_stop_lets_the_workload_end_itself(kubelet: Kubelet) -> None:
    pod = kubelet.run_pod()
    container = pod.shell(f"trap 'echo caught; exit 3' TERM; echo ready; {FOREVER}")
    wait_until(lambda: pod.output(container) == "ready\n")
    pod.cri.stop(container, 20)
    assert pod.wait(container).exit_code == 3
    assert pod.output(container) == "ready\ncaught\n"


def test_a_stop_ends_in_a_kill(kubelet: Kubelet) -> None:
    pod = kubelet.run_pod()
    container = pod.shell(f"trap '' TERM; echo ready; {FOREVER}")
    wait_until(lambda: pod.output(container) == "ready\n")
    began = time.monotonic()
    pod.cri.stop(container, 1)
    assert 0.9 < time.monotonic() - began < 8
    assert pod.wait(container).exit_code == 137


# --- network


def test_a_pod_has_its_own_network(kubelet: Kubelet) -> None:
    pod = kubelet.run_pod()
    network = pod.cri.pod_status(pod.id).network
    assert network is not None
    code, out = pod.run("ls /sys/class/net; ip addr show eth0; hostname")
    assert code == 0
    assert "eth0" in out.split()
    assert f"inet {network.ip}/" in out
    assert pod.config.hostname in out.split()


def test_a_host_network_pod(kubelet: Kubelet) -> None:
    pod = kubelet.run_pod(host_network=True)
    other = kubelet.run_pod(host_network=True)  # two of them, side by side
    expected = {path.name for path in Path("/sys/class/net").iterdir()} - {"bonding_masters"}
    for one in (pod, other):
        code, out = one.run("ls /sys/class/net; hostname")
        assert code == 0
        # Others may make and remove interfaces meanwhile: the machine's lasting ones count.
        assert {"lo", "eth0"} & expected <= set(out.split())
        assert os.uname().nodename in out.split()


# --- files


def test_generated_files(kubelet: Kubelet, tmp_path: Path) -> None:
    dns = DnsConfig(("10.9.8.7",), ("cluster.test",), ("ndots:5",))
    pod = kubelet.run_pod(dns=dns, hostname="vault")
    (tmp_path / "hosts").write_text("10.1.1.1 peer.test\n")
    (tmp_path / "message").write_text("")
    mounts = (Mount("/etc/hosts", str(tmp_path / "hosts")), Mount("/dev/termination-log", str(tmp_path / "message")))
    script = "cat /etc/resolv.conf /etc/hostname /etc/hosts; echo why > /dev/termination-log; echo x > /dev/shm/x; cat /dev/shm/x"
    code, out = pod.run(script, mounts=mounts)
    assert code == 0, out
    for expected in ("search cluster.test", "nameserver 10.9.8.7", "options ndots:5", "vault", "10.1.1.1 peer.test", "x"):
        assert expected in out.splitlines()
    assert (tmp_path / "message").read_text() == "why\n"


def test_volumes(kubelet: Kubelet, tmp_path: Path) -> None:
    """configMap and secret read-only, emptyDir writable and shared, one file alone."""
    for name in ("config", "secret", "data"):
        (tmp_path / name).mkdir()
    (tmp_path / "config/..data").mkdir()
    (tmp_path / "config/..data/colour").write_text("blue")
    (tmp_path / "config/colour").symlink_to("..data/colour")
    (tmp_path / "secret/token").write_text("hush")
    (tmp_path / "file").write_text("alone")
    mounts = (
        Mount("/etc/config", str(tmp_path / "config"), True),
        Mount("/var/run/secrets/token", str(tmp_path / "secret"), True),
        Mount("/data", str(tmp_path / "data")),
        Mount("/etc/alone.conf", str(tmp_path / "file"), True),
    )
    pod = kubelet.run_pod()
    script = "cat /etc/config/colour /var/run/secrets/token/token /etc/alone.conf; echo out > /data/result"
    script += "; touch /etc/config/new 2>/dev/null || echo; echo refused"
    assert pod.run(script, mounts=mounts) == (0, "bluehushalone\nrefused\n")
    assert (tmp_path / "data/result").read_text() == "out\n"
    assert pod.run("cat /data/result", name="second", mounts=mounts) == (0, "out\n")
    # As the kubelet updates a configMap: seen without a restart.
    container = pod.shell(
        f"while ! grep -q green /etc/config/colour; do sleep 0.1; done; echo seen; {FOREVER}", name="third", mounts=mounts
    )
    (tmp_path / "config/..data/colour").write_text("green")
    wait_until(lambda: pod.output(container) == "seen\n")


# --- resources


def group_of(pod: Pod, container: str) -> str:
    return str(pod.spec(container)["linux"]["cgroupsPath"])


def read_limit(group: str, controller: str, name: str) -> str:
    """A limit of the control group (version 1) that containerd asked for."""
    return Path(f"/sys/fs/cgroup/{controller}{group}/{name}").read_text().strip()


def test_resources_and_live_update(kubelet: Kubelet) -> None:
    pod = kubelet.run_pod()
    first = LinuxContainerResources(cpu_period=100_000, cpu_quota=50_000, cpu_shares=512, memory_limit_in_bytes=256 << 20)
    container = pod.shell(f"echo up; {FOREVER}", resources=first)
    wait_until(lambda: pod.output(container) == "up\n")
    group = group_of(pod, container)
    assert read_limit(group, "memory", "memory.limit_in_bytes") == str(256 << 20)
    assert read_limit(group, "cpu", "cpu.shares") == "512"
    assert read_limit(group, "cpu", "cpu.cfs_quota_us") == "50000"
    assert read_limit(group, "memory", "cgroup.procs") or any(Path(f"/sys/fs/cgroup/memory{group}").rglob("cgroup.procs"))
    pod.cri.update(
        container, LinuxContainerResources(cpu_period=100_000, cpu_quota=80_000, cpu_shares=256, memory_limit_in_bytes=320 << 20)
    )
    assert read_limit(group, "memory", "memory.limit_in_bytes") == str(320 << 20)
    assert read_limit(group, "cpu", "cpu.shares") == "256"
    assert read_limit(group, "cpu", "cpu.cfs_quota_us") == "80000"
    assert pod.cri.container_status(container).state == ContainerState.RUNNING


def test_statistics(kubelet: Kubelet) -> None:
    pod = kubelet.run_pod()
    container = pod.shell("while :; do :; done")
    wait_until(lambda: cpu_time(pod, container) > 50_000_000)
    before = cpu_time(pod, container)
    wait_until(lambda: cpu_time(pod, container) > before)
    memory = pod.cri.stats(container).memory
    assert memory is not None and memory.working_set_bytes is not None
    assert 0 < memory.working_set_bytes.value < 512 << 20


def cpu_time(pod: Pod, container: str) -> int:
    """Nanoseconds."""
    cpu = pod.cri.stats(container).cpu
    return cpu.usage_core_nano_seconds.value if cpu is not None and cpu.usage_core_nano_seconds is not None else 0


def test_a_memory_limit_that_is_hit_is_told(kubelet: Kubelet) -> None:
    pod = kubelet.run_pod()
    script = "x=$(head -c 4000000 /dev/zero | tr '\\0' a); y=; while :; do y=$y$x; done"
    container = pod.start(
        "/bin/busybox", "sh", "-c", script, resources=LinuxContainerResources(cpu_shares=2, memory_limit_in_bytes=128 << 20)
    )
    status = pod.wait(container, 60)
    assert (status.exit_code, status.reason) == (137, "OOMKilled")


# --- security context


def read_status(pod: Pod, **fields: Any) -> dict[str, str]:
    """/proc/self/status of a process in a container with that security context."""
    code, out = pod.run("cat /proc/self/status", **fields)
    assert code == 0, out
    return {name: value.strip() for name, _, value in (line.partition(":") for line in out.splitlines())}


def test_user_and_groups(kubelet: Kubelet) -> None:
    pod = kubelet.run_pod()
    fields = {"run_as_user": Int64Value(1000), "run_as_group": Int64Value(29), "supplemental_groups": (2000, 3000)}
    status = read_status(pod, **fields)
    assert status["Uid"].split()[0] == "1000"
    assert status["Gid"].split()[0] == "29"
    assert set(status["Groups"].split()) >= {"2000", "3000"}


CAP_CHOWN, CAP_NET_RAW, CAP_SYS_TIME = 1 << 0, 1 << 13, 1 << 25


def test_capabilities(kubelet: Kubelet) -> None:
    pod = kubelet.run_pod()
    default = int(read_status(pod, name="default")["CapEff"], 16)
    assert default & CAP_CHOWN and default & CAP_NET_RAW and not default & CAP_SYS_TIME
    dropped = int(read_status(pod, name="dropped", drop=("CHOWN",))["CapEff"], 16)
    assert dropped == default & ~CAP_CHOWN
    none = read_status(pod, name="none", drop=("ALL",))
    assert (int(none["CapEff"], 16), int(none["CapPrm"], 16), int(none["CapBnd"], 16)) == (0, 0, 0)
    only = read_status(pod, name="only", drop=("ALL",), add=("NET_RAW",))
    assert int(only["CapEff"], 16) == CAP_NET_RAW


def test_a_read_only_root(kubelet: Kubelet) -> None:
    pod = kubelet.run_pod()
    script = "touch /new 2>/dev/null && echo written; touch /dev/shm/x && echo shm"
    assert pod.run(script, readonly_rootfs=True) == (0, "shm\n")


def test_no_new_privileges(kubelet: Kubelet) -> None:
    pod = kubelet.run_pod()
    assert read_status(pod, name="a", no_new_privs=True)["NoNewPrivs"] == "1"


def test_the_default_seccomp_profile(kubelet: Kubelet) -> None:
    pod = kubelet.run_pod()
    status = read_status(pod, seccomp=SecurityProfile(Seccomp.RUNTIME_DEFAULT), no_new_privs=True)
    assert status["Seccomp"] == "2"


def test_a_seccomp_profile_of_the_node(kubelet: Kubelet, tmp_path: Path) -> None:
    profile = tmp_path / "profile.json"
    rule = {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO"}
    profile.write_text(json.dumps({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]}))
    pod = kubelet.run_pod()
    localhost = SecurityProfile(Seccomp.LOCALHOST, str(profile))
    assert pod.run("mkdir /tmp/x 2>/dev/null || echo refused; echo > /tmp/y && echo written", seccomp=localhost) == (
        0,
        "refused\nwritten\n",
    )


# --- exec


def test_exec(kubelet: Kubelet) -> None:
    pod = kubelet.run_pod()
    container = pod.shell(f"A=1; echo state > /tmp/state; echo ready; {FOREVER}", env={"FROM": "spec"})
    wait_until(lambda: pod.output(container) == "ready\n")
    assert pod.exec(container, "cat /tmp/state; echo $FROM; echo err >&2; exit 4") == (4, "state\nspec\n", "err\n")
    code, out, _ = pod.exec(container, "ps | wc -l; cat /proc/1/comm")
    assert (code, out.split()[1]) == (0, "sh")  # the workload's own process namespace
    outputs = [pod.exec(container, f"echo {number}") for number in range(5)]
    assert outputs == [(0, f"{number}\n", "") for number in range(5)]
    assert len(pod.exec(container, "head -c 300000 /dev/zero")[1]) == 300_000
    assert pod.output(container) == "ready\n"  # nothing of it in the container's log


def test_exec_of_what_does_not_exist(kubelet: Kubelet) -> None:
    pod = kubelet.run_pod()
    container = pod.shell(FOREVER)
    with pytest.raises(grpc.RpcError) as caught:
        pod.cri.exec_sync(container, "/no/such/program")
    assert "/no/such/program" in str(caught.value.details())
    assert pod.cri.container_status(container).state == ContainerState.RUNNING


def test_exec_has_a_deadline(kubelet: Kubelet) -> None:
    pod = kubelet.run_pod()
    container = pod.shell(FOREVER)
    with pytest.raises(grpc.RpcError) as caught:
        pod.cri.exec_sync(container, "/bin/sh", "-c", "exec sleep 77", timeout=1)
    assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    wait_until(lambda: "sleep 77" not in pod.exec(container, "ps")[1])
    assert pod.cri.container_status(container).state == ContainerState.RUNNING


# --- logs


def test_a_log_is_rotated(kubelet: Kubelet) -> None:
    pod = kubelet.run_pod()
    container = pod.shell("i=0; while :; do i=$((i+1)); echo $i; sleep 0.05; done")
    path = Path(pod.cri.container_status(container).log_path)
    wait_until(lambda: "2" in pod.output(container).split())
    old = path.rename(path.with_suffix(".1"))
    pod.cri.reopen_log(container)
    wait_until(lambda: len(pod.output(container).split()) > 2)
    pod.cri.stop(container, 0)
    numbers = [int(line.split(" ", 3)[3]) for file in (old, path) for line in file.read_text().splitlines()]
    assert numbers == list(range(1, len(numbers) + 1))  # none lost, none twice


def test_a_log_is_rotated_under_load(kubelet: Kubelet) -> None:
    """No byte lost or doubled while the container writes as fast as it can. (Where containerd takes over from one file to
    the next it may end a line in its midst: of ordinary containers too.)
    """
    pod = kubelet.run_pod()
    last = 200_000
    container = pod.shell(f"/bin/busybox seq -w 1 {last}; {FOREVER}")
    path = Path(pod.cri.container_status(container).log_path)
    wait_until(lambda: path.exists() and path.stat().st_size > 0)
    files = []
    for number in range(10):
        files.append(path.rename(path.with_suffix(f".{number}")))
        pod.cri.reopen_log(container)
        wait_until(lambda: path.exists())
        time.sleep(0.05)
    digits = "".join(f"{number:06}" for number in range(1, last + 1))

    def read() -> str:
        return "".join(line.split(" ", 3)[3] for file in (*files, path) for line in file.read_text().splitlines())

    wait_until(lambda: len(read()) >= len(digits), 60)
    assert read() == digits
    assert sum(file.stat().st_size > 0 for file in files) > 1  # it was still writing


def test_long_lines_and_much_output(kubelet: Kubelet) -> None:
    """Not more than CRI writes in two seconds: by then containerd's own shim closes the log of a process that ended."""
    pod = kubelet.run_pod()
    container = pod.shell("head -c 40000 /dev/zero | tr '\\0' x; echo; seq 3000; printf end")
    assert pod.wait(container).exit_code == 0
    expected = "x" * 40_000 + "\n" + "".join(f"{n}\n" for n in range(1, 3001)) + "end"
    wait_until(lambda: pod.output(container).rstrip("\n") == expected)
    assert {tag for _, tag, _ in pod.records(container)} == {"P", "F"}


# --- namespaces


def test_kube_system_pods_are_pods_like_all(kubelet: Kubelet) -> None:
    pod = kubelet.run_pod(namespace="kube-system")
    assert pod.run("cat /proc/1/comm")[0] == 0
    assert has_enclaves(pod) == (kubelet.handler == OURS)


def has_enclaves(pod: Pod) -> bool:
    """Whether a process of an agent enclave runs in the pod's control groups."""
    parent = pod.config.linux.cgroup_parent if pod.config.linux else ""
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            if parent in (directory / "cgroup").read_text() and b"enclave_cc.enclave.agent" in (directory / "cmdline").read_bytes():
                return True
        except OSError:
            continue
    return False


def test_shared_memory(kubelet: Kubelet) -> None:
    """Containers of a pod share /dev/shm; enclaves do where their owner allows volumes there."""
    pod = kubelet.run_pod()
    assert pod.run("echo shared > /dev/shm/word", name="writer")[0] == 0
    assert pod.run("cat /dev/shm/word", name="reader") == (0, "shared\n")


# --- ordinary pods beside ours


def test_ordinary_pods_beside_ours(ordinary: Kubelet, enclaves: Kubelet, canary: str) -> None:
    ours, theirs = enclaves.run_pod(), ordinary.run_pod()
    script = f"head -n 1 /opt/secret; {FOREVER}"
    containers = [(pod, pod.shell(script)) for pod in (ours, theirs)]
    for pod, container in containers:
        wait_until(lambda p=pod, c=container: p.output(c) == f"{canary}\n")
    assert has_enclaves(ours)
    assert not has_enclaves(theirs)
    handlers = {p.id: p.runtime_handler for p in ours.cri.list_pods()}
    assert (handlers[ours.id], handlers[theirs.id]) == ("enclave-cc", "runc")
    theirs.end()
    assert ours.cri.container_status(containers[0][1]).state == ContainerState.RUNNING
