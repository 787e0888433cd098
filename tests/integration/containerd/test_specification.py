"""What a specification asks of an enclave, on a real containerd: honoured with an effect that the workload sees, or refused.

What CRI can say is said by CRI, with ordinary pods beside ours; the rest by a specification of our own and `ctr run --config`.
The table is in docs/guides/containerd.md.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import daemon
import grpc
import pytest
from cri_messages import Int64Value, LinuxContainerResources, Mount
from kubelet import PARENT, Kubelet, Pod

from enclave_cc.host.sandbox.spec import own_capabilities
from enclave_cc.wire.launch.combination import DEFAULT_CAPABILITIES

pytestmark = pytest.mark.root

DEFAULT = sorted(DEFAULT_CAPABILITIES)


def make_spec(image: str, script: str, **changes: dict[str, Any]) -> dict[str, Any]:
    """A specification as a client writes it that knows more than CRI does. `changes` go into its sections."""
    capabilities = dict.fromkeys(("bounding", "effective", "permitted"), DEFAULT)
    process = {
        "args": ["/bin/sh", "-c", script],
        "env": ["PATH=/bin"],
        "cwd": "/",
        "user": {"uid": 0, "gid": 0},
        "capabilities": capabilities,
        "noNewPrivileges": True,
    }
    linux = {
        "cgroupsPath": f"{PARENT}/spec-{os.urandom(8).hex()}",
        "namespaces": [{"type": kind} for kind in ("pid", "mount", "ipc", "uts", "network")],
    }
    sections = {"process": {**process, **changes.pop("process", {})}, "linux": {**linux, **changes.pop("linux", {})}}
    spec = {"ociVersion": "1.0.2", "root": {"path": "rootfs"}, "hostname": "spec", "annotations": {"enclave-cc.image": image}}
    return {**spec, **sections, **changes}


class Runner:
    """`ctr run --config`, with our shim."""

    def __init__(self, node: daemon.Node, directory: Path, image: str) -> None:
        self.node, self.directory, self.image = node, directory, image

    def __call__(self, script: str, *, image: str = "", **changes: Any) -> subprocess.CompletedProcess[str]:
        file = self.directory / f"{os.urandom(4).hex()}.json"
        file.write_text(json.dumps(make_spec(image or self.image, script, **changes)))
        name = f"spec-{os.urandom(4).hex()}"
        return self.node.ctr("run", "--rm", "--runtime", "io.containerd.rune.v2", "--config", str(file), name, check=False)


@pytest.fixture
def run(node: daemon.Node, encrypted: str, tmp_path: Path) -> Runner:
    return Runner(node, tmp_path, encrypted)


def output(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, (done.stdout, done.stderr)
    return done.stdout


# --- by a specification of our own


def test_resource_limits(run: Runner) -> None:
    limits = [{"type": "RLIMIT_NOFILE", "soft": 77, "hard": 88}, {"type": "RLIMIT_CORE", "soft": 0, "hard": 0}]
    found = output(run("ulimit -n; ulimit -Hn; ulimit -c", process={"rlimits": limits}))
    assert found.split() == ["77", "88", "0"]


def test_more_than_the_nodes_own_programs_may_have(run: Runner) -> None:
    """runc raises it where it may itself, as for an ordinary container."""
    hard = resource.getrlimit(resource.RLIMIT_NPROC)[1]
    assert hard != resource.RLIM_INFINITY
    done = run("ulimit -p; ulimit -Hp", process={"rlimits": [{"type": "RLIMIT_NPROC", "soft": 77, "hard": hard + 1}]})
    if "CAP_SYS_RESOURCE" in own_capabilities():
        assert output(done).split() == ["77", str(hard + 1)]
    else:
        assert done.returncode and "runc-failed: " in done.stderr


def test_a_resource_limit_that_is_none(run: Runner) -> None:
    done = run("true", process={"rlimits": [{"type": "RLIMIT_JOY", "soft": 1, "hard": 1}]})
    assert done.returncode and "launch-failed: " in done.stderr, done.stderr


def test_file_systems_in_memory(run: Runner) -> None:
    mounts = [
        {"destination": "/home", "type": "tmpfs", "source": "tmpfs", "options": ["size=1m", "mode=0700", "noexec", "nosuid"]},
        {"destination": "/new/place", "type": "tmpfs", "source": "tmpfs"},
    ]
    script = "grep ' /home \\| /new/place ' /proc/mounts; ls -A /home; head -c 2000000 /dev/zero > /home/x; wc -c < /home/x"
    found = output(run(f"{script}; echo > /new/place/y && echo written", mounts=mounts, root={"path": "r", "readonly": True}))
    lines = found.splitlines()
    assert lines[0].startswith("tmpfs /home tmpfs rw,nosuid,nodev,noexec,") and "size=1024k,mode=700" in lines[0]
    assert lines[1].startswith("tmpfs /new/place tmpfs rw,nosuid,nodev,")
    assert lines[2:] == [str(1 << 20), "written"]  # nothing of the image's /home, and no byte more than the size


def test_a_file_system_needs_the_owners_word(run: Runner, strict: str) -> None:
    mounts = [{"destination": "/home/app", "type": "tmpfs", "source": "tmpfs"}]
    done = run("x", image=strict, mounts=mounts, process={"args": ["/bin/sh", "-c", "id; pwd; echo $COLOUR"], "cwd": "/home/app"})
    assert done.returncode and "launch-denied: " in done.stderr, done.stderr


def test_a_namespace_of_control_groups(run: Runner) -> None:
    script = "cat /proc/self/cgroup"
    namespaces = [{"type": kind} for kind in ("pid", "mount", "ipc", "uts", "network")]
    shared = output(run(script, linux={"namespaces": namespaces}))
    assert f"{PARENT}/spec-" in shared
    own = output(run(script, linux={"namespaces": [*namespaces, {"type": "cgroup"}]}))
    assert {line.split(":")[2] for line in own.splitlines()} == {"/"}


def test_a_network_of_its_own(run: Runner) -> None:
    """One that nobody made before, and nobody connects."""
    assert output(run("ls /sys/class/net")).split() == ["lo"]
    shared = [{"type": kind} for kind in ("pid", "mount", "ipc", "uts")]
    assert "eth0" in output(run("ls /sys/class/net", linux={"namespaces": shared})).split()


def test_sysctls(run: Runner) -> None:
    script = "cat /proc/sys/net/ipv4/ip_default_ttl /proc/sys/kernel/shmmni; echo 7 > /proc/sys/kernel/shmmni"
    done = run(script, linux={"sysctl": {"net.ipv4.ip_default_ttl": "77", "kernel.shmmni": "123"}})
    assert done.stdout.split() == ["77", "123"], done.stderr
    assert "Read-only" in done.stderr
    refused = run("true", linux={"sysctl": {"vm.swappiness": "1"}})  # the node's, of no namespace
    assert refused.returncode and "runc-failed: " in refused.stderr, refused.stderr


def test_further_places_of_the_kernel_are_hidden(run: Runner) -> None:
    linux = {"maskedPaths": ["/proc/uptime", "/proc/no/such"], "readonlyPaths": ["/proc/version"]}
    assert output(run("wc -c < /proc/uptime; grep -c Linux /proc/version", linux=linux)).split() == ["0", "1"]
    # Fewer than always are: they stay hidden.
    bare = output(run("test -s /proc/kcore || echo hidden; echo > /proc/sys/kernel/hostname 2>/dev/null || echo sealed"))
    assert bare.split() == ["hidden", "sealed"]


def test_ambient_capabilities(run: Runner, strict: str) -> None:
    sets = {**dict.fromkeys(("bounding", "effective", "permitted"), DEFAULT), "ambient": ["CAP_NET_BIND_SERVICE"]}
    process = {"user": {"uid": 1000, "gid": 1000}, "capabilities": sets}
    found = output(run("grep CapAmb /proc/self/status; exec /bin/busybox grep CapEff /proc/self/status", process=process))
    assert [int(word, 16) for word in found.split()[1::2]] == [1 << 10, 1 << 10]
    done = run("x", image=strict, process={**process, "args": ["/bin/sh", "-c", "id; pwd; echo $COLOUR"], "cwd": "/home/app"})
    assert done.returncode and "launch-denied: " in done.stderr, done.stderr


REFUSED: dict[str, dict[str, Any]] = {
    "hooks": {"hooks": {"prestart": [{"path": "/bin/true"}]}},
    "a device": {"linux": {"devices": [{"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229}]}},
    "a SELinux label": {"process": {"selinuxLabel": "system_u:system_r:container_t:s0"}},
    "an AppArmor profile": {"process": {"apparmorProfile": "mine"}},
    "a umask": {"process": {"user": {"uid": 0, "gid": 0, "umask": 0}}},
    "a domain name": {"domainname": "example.org"},
    "mapped ids": {"linux": {"uidMappings": [{"containerID": 0, "hostID": 1000, "size": 1}]}},
    "a hidden file of the image": {"linux": {"maskedPaths": ["/opt/secret"]}},
    "a hidden file of the image's by way of /proc": {"linux": {"maskedPaths": ["/proc/self/root/opt/secret"]}},
    "a shared mount": {"mounts": [{"destination": "/m", "type": "bind", "source": "/tmp", "options": ["rbind", "rshared"]}]},
    "a file system of the node's": {"mounts": [{"destination": "/m", "type": "ext4", "source": "/dev/vda"}]},
    "unlike sets of capabilities": {"process": {"capabilities": {"bounding": DEFAULT, "effective": [], "permitted": []}}},
    "a notified filter": {
        "linux": {"seccomp": {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_NOTIFY"}]}}
    },
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_hold_is_refused(run: Runner, what: str) -> None:
    done = run("echo it ran", **json.loads(json.dumps(REFUSED[what])))
    assert done.returncode != 0
    assert done.stdout == ""
    assert "launch-failed: " in done.stderr


# --- by CRI


def test_sysctls_of_a_pod(kubelet: Kubelet) -> None:
    pod = kubelet.run_pod(sysctls={"net.ipv4.ip_default_ttl": "77", "kernel.shm_rmid_forced": "1"})
    script = "cat /proc/sys/net/ipv4/ip_default_ttl /proc/sys/kernel/shm_rmid_forced"
    for name in ("first", "second"):
        assert pod.run(script, name=name) == (0, "77\n1\n")


def test_the_namespaces_of_a_pod(kubelet: Kubelet) -> None:
    """Its containers share network, IPC and host name, and nothing of it with the node; processes and mounts are their own."""
    pod = kubelet.run_pod()
    script = "for kind in net ipc uts pid mnt; do /bin/busybox readlink /proc/self/ns/$kind; done"
    containers = [pod.shell("while :; do sleep 0.1; done", name=name) for name in ("first", "second")]
    first, second = (pod.exec(container, script)[1].split() for container in containers)
    node = [os.readlink(f"/proc/self/ns/{kind}") for kind in ("net", "ipc", "uts", "pid", "mnt")]
    assert (len(first), first[:2]) == (5, second[:2])
    assert not set(first) & set(node)
    assert not set(first[3:]) & set(second[3:])


def test_the_score_for_the_out_of_memory_killer(kubelet: Kubelet) -> None:
    pod = kubelet.run_pod()
    resources = LinuxContainerResources(cpu_shares=2, oom_score_adj=987)
    assert pod.run("cat /proc/self/oom_score_adj", resources=resources) == (0, "987\n")


def test_no_new_privileges_and_setuid(kubelet: Kubelet) -> None:
    """A program of root's with the setuid bit gives its rights to a user, and not where the pod forbids it."""
    pod = kubelet.run_pod()
    # busybox's su says so when it has no rights of root's; with them it asks for a password.
    make = "/bin/busybox cp /bin/busybox /tmp/busybox; /bin/busybox chmod 4755 /tmp/busybox"
    script = f"{make}; /bin/busybox su -s /bin/sh app -c '/tmp/busybox su -c true' 2>&1 | grep -c 'must be suid'"
    for name, forbidden, expected in (("allowed", False, (1, "0\n")), ("forbidden", True, (0, "1\n"))):
        assert pod.run(script, name=name, no_new_privs=forbidden) == expected


def test_supplemental_groups_reach_files(kubelet: Kubelet, tmp_path: Path) -> None:
    """fsGroup: a volume of a group that the pod is in, and no other's."""
    for name, group in (("ours", 2000), ("theirs", 2001)):
        (tmp_path / name).mkdir()
        os.chown(tmp_path / name, 0, group)
        (tmp_path / name).chmod(0o2770)
    pod = kubelet.run_pod()
    mounts = (Mount("/ours", str(tmp_path / "ours")), Mount("/theirs", str(tmp_path / "theirs")))
    fields = {"run_as_user": Int64Value(1000), "run_as_group": Int64Value(1000), "supplemental_groups": (2000,), "mounts": mounts}
    script = "echo x > /ours/f && stat -c '%u %g' /ours/f; echo x > /theirs/f 2>/dev/null || echo refused"
    assert pod.run(script, **fields) == (0, "1000 2000\nrefused\n")


def test_privileged_pods_get_no_device_of_the_node(enclaves: Kubelet) -> None:
    """Where the owner allows all: every capability that the node's own root has, and the devices of any container."""
    pod = enclaves.run_pod(privileged=True)
    code, out = pod.run("ls /dev; grep CapEff /proc/self/status", privileged=True)
    assert code == 0, out
    assert not {"kvm", "mem", "vda", "sda", "kmsg"} & set(out.split())
    assert int(out.split()[-1], 16) & 1 << 21  # CAP_SYS_ADMIN


@pytest.fixture
def shared_mount(tmp_path: Path) -> Iterator[Path]:
    """What containerd asks for before it takes a mount for one that can propagate."""
    place = tmp_path / "shared"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "shared", place], check=True)
    try:
        subprocess.run(["mount", "--make-shared", place], check=True)
        yield place
    finally:
        subprocess.run(["umount", place], check=True)


@pytest.mark.parametrize("propagation", [1, 2])
def test_mount_propagation_is_refused(enclaves: Kubelet, shared_mount: Path, propagation: int) -> None:
    """HostToContainer and Bidirectional."""
    pod: Pod = enclaves.run_pod()
    container = pod.create("/bin/true", mounts=(Mount("/m", str(shared_mount), propagation=propagation),))
    with pytest.raises(grpc.RpcError, match="launch-failed"):
        pod.cri.start(container)
