"""containerd's specification, translated: what bounds the workload, and what the agent is asked for."""

from __future__ import annotations

import resource
from pathlib import Path
from typing import Any

import pytest

from enclave_cc.errors import EnclaveCcError, PeerError, UsageError
from enclave_cc.host.sandbox import image_user
from enclave_cc.host.shim import workload
from enclave_cc.wire.launch import mounts
from enclave_cc.wire.launch.limits import Rlimit


def make_spec(**changes: Any) -> dict[str, Any]:
    process = {
        "args": ["/bin/app", "serve"],
        "env": ["PATH=/bin", "HOSTNAME=pod", "A=1"],
        "cwd": "/srv/",
        "user": {"uid": 0, "gid": 0},
        "noNewPrivileges": True,
        "oomScoreAdj": 500,
        **changes.pop("process", {}),
    }
    linux = {
        "cgroupsPath": "/kubepods/c1",
        "namespaces": [
            {"type": "pid"},
            {"type": "mount"},
            {"type": "network", "path": "/proc/7/ns/net"},
            {"type": "ipc", "path": "/proc/7/ns/ipc"},
            {"type": "uts", "path": "/proc/7/ns/uts"},
        ],
        "resources": {"memory": {"limit": 1000}, "devices": [{"allow": True}]},
        **changes.pop("linux", {}),
    }
    annotations = {workload.SANDBOX_ID: "s1", workload.IMAGE_NAME: "r.example/app:1"}
    return {"process": process, "linux": linux, "annotations": annotations, "root": {"readonly": True}, "mounts": [], **changes}


def translate(**changes: Any) -> workload.Workload:
    return workload.translate(make_spec(**changes), terminal=False)


def test_the_process() -> None:
    found = translate()
    asked = found.overrides
    assert (found.image, found.hostname) == ("r.example/app:1", "pod")
    assert (asked.entrypoint, asked.args) == (("/bin/app", "serve"), None)
    assert asked.env == ("PATH=/bin", "A=1")  # HOSTNAME follows from the host name
    assert (asked.hostname, asked.cwd, asked.user) == ("pod", "/srv", "0")
    assert asked.read_only_root and asked.no_new_privileges and not asked.terminal


def test_a_terminal_brings_its_own_variable() -> None:
    spec = make_spec(process={"env": ["TERM=xterm", "TERM=vt100"]})
    assert workload.translate(spec, terminal=True).overrides.env == ("TERM=vt100",)
    assert workload.translate(spec, terminal=False).overrides.env == ("TERM=xterm", "TERM=vt100")


@pytest.mark.parametrize(
    ("user", "expected"),
    [
        ({}, ("0", ())),
        ({"uid": 0, "gid": 0, "additionalGids": [0]}, ("0", ())),
        ({"uid": 1000, "gid": 29, "additionalGids": [29, 3000, 2000]}, ("1000:29", ("2000", "3000"))),
        ({"uid": image_user.UID, "gid": image_user.GID, "additionalGids": [image_user.GID]}, (None, ())),
        ({"uid": image_user.UID, "gid": 5, "additionalGids": [7]}, (None, ("7",))),
        ({"uid": 1000, "gid": image_user.GID}, ("1000", ())),
    ],
)
def test_the_user(user: dict[str, Any], expected: tuple[str | None, tuple[str, ...]]) -> None:
    assert workload.read_user(user) == expected


def test_the_surroundings() -> None:
    foundation = translate().foundation
    assert foundation.group == "/kubepods/c1"
    assert foundation.joined == {"network": "/proc/7/ns/net", "ipc": "/proc/7/ns/ipc", "uts": "/proc/7/ns/uts"}
    assert foundation.shared == frozenset()
    assert foundation.resources == {"memory": {"limit": 1000}}  # which devices an enclave sees is ours to say
    assert foundation.oom_score == 500


def test_the_nodes_own_namespaces() -> None:
    foundation = translate(linux={"namespaces": [{"type": "pid"}, {"type": "mount"}, {"type": "ipc"}]}).foundation
    assert foundation.shared == {"network", "uts"}
    spec = {
        "hostname": "x",
        "process": {"capabilities": {}},
        "linux": {"namespaces": [{"type": kind} for kind in ("pid", "uts", "network")], "resources": {"devices": []}},
    }
    foundation.put(spec)
    assert spec["linux"]["namespaces"] == [{"type": "pid"}]
    assert "hostname" not in spec


@pytest.mark.parametrize(
    "namespaces",
    [
        [{"type": "mount"}],
        [{"type": "pid", "path": "/proc/7/ns/pid"}, {"type": "mount"}],
        [{"type": "pid"}, {"type": "mount", "path": "/proc/7/ns/mnt"}],
        [{"type": "pid"}, {"type": "mount"}, {"type": "user"}],
        [{"type": "pid"}, {"type": "mount"}, {"type": "time"}],
        [{"type": "pid"}, {"type": "mount"}, {"type": "cgroup", "path": "/proc/1/ns/cgroup"}],
    ],
)
def test_what_cannot_hold_across_enclaves_is_refused(namespaces: list[dict[str, str]]) -> None:
    with pytest.raises(PeerError) as caught:
        translate(linux={"namespaces": namespaces})
    assert caught.value.code == "launch-failed"


def bind(source: str, destination: str, *options: str) -> dict[str, Any]:
    return {"type": "bind", "source": source, "destination": destination, "options": ["rbind", *options]}


def test_mounts() -> None:
    found = translate(
        mounts=[
            {"type": "proc", "source": "proc", "destination": "/proc"},
            {"type": "tmpfs", "source": "tmpfs", "destination": "/dev"},
            {"type": "tmpfs", "source": "tmpfs", "destination": "/run"},
            {"type": "tmpfs", "source": "shm", "destination": "/dev/shm"},
            bind("/var/shm", "/dev/shm"),
            bind("/k/etc-hosts", "/etc/hosts", "rw"),
            bind("/k/resolv.conf", "/etc/resolv.conf", "ro"),
            bind("/k/log", "/dev/termination-log", "rw"),
            bind("/k/token", "/var/run/secrets//token/", "ro"),
        ]
    )
    assert found.generated == {"hosts": Path("/k/etc-hosts"), "resolv.conf": Path("/k/resolv.conf")}
    assert found.overrides.files == ("hosts", "resolv.conf")
    assert found.overrides.volumes == (
        mounts.Volume("v0", "/dev/shm"),
        mounts.Volume("v1", "/dev/termination-log"),
        mounts.Volume("v2", "/var/run/secrets/token", True),
    )
    assert [(str(v.source), v.read_only) for v in found.volumes] == [
        ("/var/shm", False),
        ("/k/log", False),
        ("/k/token", True),
    ]


def test_of_two_mounts_at_one_place_the_later_counts() -> None:
    found = translate(mounts=[bind("/a", "/data"), bind("/b", "/data/", "ro")])
    assert [str(v.source) for v in found.volumes] == ["/b"]
    assert [(v.destination, v.read_only) for v in found.overrides.volumes] == [("/data", True)]


@pytest.mark.parametrize(
    "mount",
    [
        bind("/evil", "/proc"),
        bind("/evil", "/proc/1"),
        bind("/evil", "/sys/fs/cgroup"),
        bind("/evil", "/dev/null"),
        bind("/evil", "/"),
        bind("/a", "/data", "rslave"),
        bind("/a", "/data", "rshared"),
        bind("/a", "/data", "idmap"),
        {**bind("/a", "/data"), "uidMappings": [{"hostID": 1, "containerID": 0, "size": 1}]},
        bind("/a", "/etc/hosts", "rshared"),
        {"type": "overlay", "source": "overlay", "destination": "/usr", "options": []},
        {"type": "tmpfs", "source": "tmpfs", "destination": "/proc/x", "options": []},
        {"type": "tmpfs", "source": "tmpfs", "destination": "/data", "options": ["uid=7"]},
        {"type": "tmpfs", "source": "tmpfs", "destination": "/data", "options": ["size=50%"]},
        {"type": "tmpfs", "source": "tmpfs", "destination": "/data", "options": ["mode=9"]},
        {"type": "cgroup", "source": "cgroup", "destination": "/data"},
    ],
)
def test_mounts_that_no_enclave_may_have(mount: dict[str, Any]) -> None:
    with pytest.raises(PeerError) as caught:
        translate(mounts=[mount])
    assert caught.value.code == "launch-failed"


def test_file_systems_in_memory() -> None:
    options = ["nosuid", "nodev", "noexec", "size=64m", "mode=0700"]
    found = translate(
        mounts=[
            {"type": "tmpfs", "source": "tmpfs", "destination": "/cache", "options": options},
            {"type": "tmpfs", "source": "tmpfs", "destination": "/scratch"},
            bind("/a", "/covered"),
            {"type": "tmpfs", "source": "tmpfs", "destination": "/covered/"},
        ]
    )
    expected = (mounts.Tmpfs("/cache", 64 << 20, 0o700, False), mounts.Tmpfs("/scratch"), mounts.Tmpfs("/covered"))
    assert found.overrides.tmpfs == expected
    assert found.volumes == found.overrides.volumes == ()


@pytest.mark.parametrize(
    ("member", "value"),
    [
        ("hooks", {"prestart": [{"path": "/bin/spy"}]}),
        ("hooks", {"createContainer": [{"path": "/bin/spy"}], "poststop": []}),
        ("domainname", "example.org"),
        ("process.selinuxLabel", "system_u:system_r:container_t:s0"),
        ("process.apparmorProfile", "localhost/mine"),
        ("process.scheduler", {"policy": "SCHED_FIFO"}),
        ("process.ioPriority", {"class": "IOPRIO_CLASS_RT"}),
        ("process.execCPUAffinity", {"initial": "0"}),
        ("process.user", {"uid": 0, "gid": 0, "umask": 0}),
        ("process.capabilities", {"bounding": ["CAP_KILL"], "effective": [], "permitted": ["CAP_KILL"]}),
        ("linux.devices", [{"path": "/dev/kvm", "type": "c", "major": 10, "minor": 232}]),
        ("linux.netDevices", {"eth1": {}}),
        ("linux.uidMappings", [{"containerID": 0, "hostID": 1000, "size": 1}]),
        ("linux.timeOffsets", {"monotonic": {"secs": 1}}),
        ("linux.personality", {"domain": "LINUX32"}),
        ("linux.mountLabel", "system_u:object_r:container_file_t:s0"),
        ("linux.intelRdt", {"closID": "gold"}),
        ("linux.rootfsPropagation", "rshared"),
        ("linux.seccomp", {"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/run/spy.sock"}),
        ("linux.maskedPaths", ["/etc/shadow"]),
        ("linux.readonlyPaths", ["/proc/1/root/var"]),
    ],
)
def test_what_no_enclave_gets_is_refused(member: str, value: object) -> None:
    top, _, name = member.partition(".")
    with pytest.raises(PeerError) as caught:
        translate(**({top: {name: value}} if name else {top: value}))
    assert caught.value.code == "launch-failed"


def test_what_asks_for_nothing_is_not_refused() -> None:
    nothing = {"selinuxLabel": "", "apparmorProfile": "cri-containerd.apparmor.d", "user": {"uid": 0, "gid": 0, "umask": 0o022}}
    none = {"devices": [], "maskedPaths": None, "rootfsPropagation": "rprivate", "uidMappings": None}
    found = translate(hooks={"prestart": [], "poststop": None}, domainname="", process=nothing, linux=none)
    assert found.overrides.masked == ()


def test_limits_and_places_of_the_kernel() -> None:
    limits = [{"type": "RLIMIT_NOFILE", "soft": 10, "hard": 20}, {"type": "RLIMIT_NOFILE", "soft": 30, "hard": 40}]
    linux = {"maskedPaths": ["/proc/kcore", "/proc/fancy/"], "readonlyPaths": ["/proc/sys", "/sys/module"], "sysctl": {"net.x": 1}}
    found = translate(process={"rlimits": limits}, linux=linux)
    assert found.overrides.rlimits == found.foundation.rlimits == (Rlimit("RLIMIT_NOFILE", 30, 40),)
    assert (found.overrides.masked, found.overrides.sealed) == (("/proc/fancy",), ("/sys/module",))
    assert found.foundation.sysctls == {"net.x": "1"}


def test_a_terminals_size() -> None:
    spec = make_spec(process={"consoleSize": {"height": 33, "width": 99}})
    assert workload.translate(spec, terminal=True).console == (33, 99)
    assert translate().console == (0, 0)


def test_boot_inits_own_limit_is_raised_and_never_lowered() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    listed = [{"type": "RLIMIT_NOFILE", "soft": 1, "hard": hard + 1}, {"type": "RLIMIT_CORE", "soft": 0, "hard": 0}]
    made: dict[str, Any] = {
        "process": {"capabilities": {}},
        "hostname": "h",
        "linux": {"namespaces": [{"type": "pid"}], "resources": {"devices": []}},
    }
    namespaces = [{"type": "pid"}, {"type": "mount"}, {"type": "cgroup"}]
    spec = make_spec(process={"rlimits": listed}, linux={"namespaces": namespaces, "sysctl": {"kernel.shmmni": "5"}})
    workload.make_foundation(spec, "/g").put(made)
    assert made["process"]["rlimits"] == [{"type": "RLIMIT_NOFILE", "soft": soft, "hard": hard + 1}]
    assert made["linux"]["sysctl"] == {"kernel.shmmni": "5"}
    assert {"type": "cgroup"} in made["linux"]["namespaces"]


def test_the_image_must_be_named() -> None:
    with pytest.raises(UsageError) as caught:
        translate(annotations={})
    assert caught.value.code == "bad-reference"
    named = translate(annotations={workload.OWN_IMAGE: "r/own", workload.IMAGE_NAME: "r/kube"})
    assert named.image == "r/own"
    annotations = {workload.OWN_IMAGE: "r/own", workload.CONTAINER_NAME: "side", f"{workload.OWN_IMAGE}.side": "r/side"}
    assert translate(annotations=annotations).image == "r/side"
    assert translate(annotations={**annotations, workload.CONTAINER_NAME: "other"}).image == "r/own"
    assert workload.names_own_image(annotations)
    assert not workload.names_own_image({workload.IMAGE_NAME: "r/kube", f"{workload.OWN_IMAGE}.side": "r/side"})


@pytest.mark.parametrize(
    "changes",
    [
        {"process": {"args": None}},
        {"process": {"user": [1]}},
        {"process": {"user": {"uid": "root"}}},
        {"process": {"env": ["=x"]}},
        {"process": None},
        {"linux": {"cgroupsPath": None, "namespaces": 7}},
        {"mounts": [{}]},
        {"mounts": {"a": 1}},
        {"annotations": {workload.IMAGE_NAME: ""}},
    ],
)
def test_a_broken_specification_is_a_coded_error(changes: dict[str, Any]) -> None:
    spec = make_spec()
    for name, value in changes.items():
        spec[name] = {**spec[name], **value} if isinstance(value, dict) and isinstance(spec[name], dict) else value
    with pytest.raises(EnclaveCcError):
        workload.translate(spec, terminal=False)


def test_pods() -> None:
    assert workload.group_of(make_spec(), "c1") == "s1"
    assert workload.group_of({}, "c1") == "c1"
    assert workload.is_sandbox({"annotations": {workload.CONTAINER_TYPE: "sandbox"}})
    assert not workload.is_sandbox({"annotations": {workload.CONTAINER_TYPE: "container"}})
