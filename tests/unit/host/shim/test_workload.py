"""containerd's specification, translated: what bounds the workload, and what the agent is asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from enclave_cc.errors import EnclaveCcError, PeerError, UsageError
from enclave_cc.host.sandbox import image_user
from enclave_cc.host.shim import workload
from enclave_cc.wire.launch import mounts


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
        {"type": "overlay", "source": "overlay", "destination": "/usr", "options": []},
    ],
)
def test_mounts_that_no_enclave_may_have(mount: dict[str, Any]) -> None:
    with pytest.raises(PeerError) as caught:
        translate(mounts=[mount])
    assert caught.value.code == "launch-failed"


def test_the_image_must_be_named() -> None:
    with pytest.raises(UsageError) as caught:
        translate(annotations={})
    assert caught.value.code == "bad-reference"
    named = translate(annotations={workload.OWN_IMAGE: "r/own", workload.IMAGE_NAME: "r/kube"})
    assert named.image == "r/own"


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
