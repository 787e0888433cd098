from __future__ import annotations

import json
from pathlib import Path

import pytest

from enclave_cc.host.sandbox import spec
from enclave_cc.host.sandbox.spec import Place, Resources, Volume

PLACE = Place("pod1", "app1", Path("/r/pods/pod1/c/app1"), Path("/r/pods/pod1/run"))


def app(**more: object) -> dict[str, object]:
    made = spec.make_app(
        PLACE, Path("/b/rootfs"), ["/p", "--container", "app1"], {"PATH": "/bin"}, blobs=Path("/s/blobs"), hostname="h",
        **{"network": "none", **more},  # type: ignore[arg-type]
    )  # fmt: skip
    json.dumps(made)
    return made


def mounts(made: dict[str, object]) -> dict[str, dict[str, object]]:
    return {str(m["destination"]): m for m in made["mounts"]}  # type: ignore[attr-defined]


def test_the_root_is_the_measured_bundle_and_read_only() -> None:
    assert app()["root"] == {"path": "/b/rootfs", "readonly": True}


def test_sealed_blobs_and_sockets_are_read_only_for_the_app() -> None:
    there = mounts(app())
    for place in ("/var/lib/enclave-cc/cache/blobs", "/run/enclave-cc", "/run/enclave-cc/files"):
        assert "ro" in there[place]["options"]  # type: ignore[operator]
    assert "rw" in there["/run/enclave-cc/container"]["options"]  # type: ignore[operator]


def test_mounts_below_another_come_after_it() -> None:
    places = [m["destination"] for m in app(volumes=[Volume("v0", Path("/data"))])["mounts"]]  # type: ignore[attr-defined]
    for number, place in enumerate(places):
        assert not any(later != place and str(place).startswith(f"{later}/") for later in places[number + 1 :])


@pytest.mark.parametrize(
    ("network", "namespace"),
    [("host", None), ("none", {"type": "network"}), (Path("/proc/7/ns/net"), {"type": "network", "path": "/proc/7/ns/net"})],
)
def test_networks(network: object, namespace: object) -> None:
    found = [n for n in app(network=network)["linux"]["namespaces"] if n["type"] == "network"]  # type: ignore[index]
    assert found == ([] if namespace is None else [namespace])


def test_volumes_appear_by_their_agreed_names() -> None:
    there = mounts(app(volumes=[Volume("v0", Path("/data"), True), Volume("v1", Path("/more"))]))
    assert there["/run/enclave-cc/volumes/v0"]["source"] == "/data"
    assert "ro" in there["/run/enclave-cc/volumes/v0"]["options"]  # type: ignore[operator]
    assert "rw" in there["/run/enclave-cc/volumes/v1"]["options"]  # type: ignore[operator]


def test_limits() -> None:
    limits = app(resources=Resources(memory=1 << 20, cpus=1.5, processes=10))["linux"]["resources"]  # type: ignore[index]
    assert limits["memory"] == {"limit": 1 << 20}
    assert limits["cpu"] == {"period": 100_000, "quota": 150_000}
    assert limits["pids"] == {"limit": 10}
    assert {"memory", "cpu", "pids"} & set(app()["linux"]["resources"]) == set()  # type: ignore[index]


def test_only_the_app_gets_fuse_and_capabilities() -> None:
    agent = spec.make_agent(PLACE, Path("/b"), ["/p"], {}, Path("/s/cache"), Resources())
    pause = spec.make_pause(PLACE, Path("/p"), hostname="h", own_network=True)
    for made in (agent, pause):
        assert "devices" not in made["linux"]
        assert made["process"]["capabilities"]["bounding"] == []
        assert made["process"]["noNewPrivileges"] is True
    assert app()["linux"]["devices"][0]["path"] == "/dev/fuse"  # type: ignore[index]


def test_no_capability_is_asked_for_that_we_lack() -> None:
    granted = app()["process"]["capabilities"]["bounding"]  # type: ignore[index]
    assert {name.removeprefix("CAP_") for name in granted} <= spec.own_capabilities()
