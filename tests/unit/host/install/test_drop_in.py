"""The drop-in for each version of containerd and of its configuration files. (Against a real 1.6: tests/integration.)"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from enclave_cc.errors import EnvironmentFault, UsageError
from enclave_cc.host.install import containerd as installed
from enclave_cc.host.install import drop_in
from enclave_cc.host.install.containerd import CRI, IMAGES, Containerd, merge

NODE = drop_in.Choice(Path("/run/s.sock"), Path("/var/lib/s"), per_runtime=False)
PER_RUNTIME = drop_in.Choice(Path("/run/s.sock"), Path("/var/lib/s"), per_runtime=True)
RUNC = {"runtime_type": "io.containerd.runc.v2", "options": {"SystemdCgroup": True}, "runtime_engine": ""}


def dump_of(schema: int, **cri: Any) -> dict[str, Any]:
    return {"plugins": {CRI[schema]: {**cri, "containerd": {"runtimes": {"runc": RUNC}}}}}


def make(version: tuple[int, int], schema: int, choice: drop_in.Choice, plugins: dict[str, Any]) -> dict[str, Any]:
    found = Containerd("containerd", version, Path("/etc/containerd/config.toml"), schema)
    return tomllib.loads(drop_in.make(found, plugins, choice, dump_of(schema)))


@pytest.mark.parametrize(("version", "schema"), [((1, 6), 1), ((1, 6), 2), ((1, 7), 2)])
def test_old_ones_repeat_what_is_configured(version: tuple[int, int], schema: int) -> None:
    plugins = {
        CRI[schema]: {"cni": {"bin_dir": "/opt/cni"}, "sandbox_image": "pause"},
        "io.containerd.internal.v1.opt": {"path": "/x"},
    }
    document = make(version, schema, NODE, plugins)
    section = document["plugins"][CRI[schema]]
    assert document.get("version", 1) == schema
    assert list(document["plugins"]) == [CRI[schema]]  # nothing else is ours
    assert (section["cni"], section["sandbox_image"]) == ({"bin_dir": "/opt/cni"}, "pause")
    assert section["containerd"]["snapshotter"] == "enclave-cc"
    assert section["containerd"]["disable_snapshot_annotations"] is False
    assert section["containerd"]["runtimes"]["runc"] == {"runtime_type": RUNC["runtime_type"], "options": RUNC["options"]}
    assert section["containerd"]["runtimes"]["enclave-cc"]["runtime_type"] == "io.containerd.rune.v2"
    assert document["proxy_plugins"] == {"enclave-cc": {"type": "snapshot", "address": "/run/s.sock"}}


def test_one_snapshotter_per_runtime_on_1_7() -> None:
    section = make((1, 7), 2, PER_RUNTIME, {})["plugins"][CRI[2]]["containerd"]
    assert "snapshotter" not in section
    assert section["runtimes"]["enclave-cc"]["snapshotter"] == "enclave-cc"


@pytest.mark.parametrize("choice", [NODE, PER_RUNTIME])
def test_containerd_2(choice: drop_in.Choice) -> None:
    document = make((2, 1), 3, choice, {})
    assert document["version"] == 3
    assert document["proxy_plugins"]["enclave-cc"]["exports"]["enable_remote_snapshot_annotations"] == "true"
    images = document["plugins"][IMAGES]
    runtime = document["plugins"][CRI[3]]["containerd"]["runtimes"]["enclave-cc"]
    assert images["disable_snapshot_annotations"] is False
    if choice.per_runtime:
        assert images["runtime_platforms"] == {"enclave-cc": {"snapshotter": "enclave-cc"}}
        assert runtime["snapshotter"] == "enclave-cc"
        assert "snapshotter" not in images
    else:
        assert images["snapshotter"] == "enclave-cc"


def test_containerd_2_with_an_older_file() -> None:
    document = make((2, 0), 2, PER_RUNTIME, {})
    assert document["version"] == 2
    assert document["plugins"][CRI[2]]["containerd"]["runtimes"]["enclave-cc"]["snapshotter"] == "enclave-cc"
    assert document["plugins"][IMAGES] == {"runtime_platforms": {"enclave-cc": {"snapshotter": "enclave-cc"}}}


def test_containerd_2_unpacks_for_ours_and_for_what_is_configured() -> None:
    """Its list is replaced by that of an imported file."""
    ours = {"platform": "linux/amd64", "snapshotter": "enclave-cc"}
    section = make((2, 1), 3, NODE, {})["plugins"][drop_in.TRANSFER]
    assert section == {"unpack_config": [{"platform": "linux/amd64", "snapshotter": "overlayfs"}, ours]}
    other = {"platform": "linux/amd64", "snapshotter": "stargz", "differ": "walking"}
    plugins = {drop_in.TRANSFER: {"unpack_config": [other], "max_concurrent_downloads": 5}}
    assert make((2, 1), 3, NODE, plugins)["plugins"][drop_in.TRANSFER] == {"unpack_config": [other, ours]}
    plugins = {drop_in.TRANSFER: {"unpack_config": [ours]}}
    assert make((2, 1), 3, NODE, plugins)["plugins"][drop_in.TRANSFER] == plugins[drop_in.TRANSFER]
    found = Containerd("containerd", (2, 1), Path("/etc/containerd/config.toml"), 3)
    assert drop_in.digest(found, plugins) != drop_in.digest(found, {})  # so doctor sees a change


@pytest.mark.parametrize(("version", "schema", "choice"), [((1, 6), 2, NODE), ((2, 1), 3, NODE), ((2, 1), 3, PER_RUNTIME)])
def test_the_check_sees_what_is_missing(version: tuple[int, int], schema: int, choice: drop_in.Choice) -> None:
    before = dump_of(schema)
    found = Containerd("containerd", version, Path("/etc/containerd/config.toml"), schema)
    after = merge(before, make(version, schema, choice, {}))
    drop_in.check(found, before, after, choice)
    for broken in (
        merge(after, {"proxy_plugins": {"enclave-cc": {"address": "/other"}}}),
        merge(after, {"plugins": {CRI[schema]: {"containerd": {"runtimes": {"enclave-cc": {"runtime_type": "x"}}}}}}),
        merge(after, {"plugins": {CRI[schema] if schema < 3 else IMAGES: {"containerd": {}, "disable_snapshot_annotations": True}}})
        if schema == 3
        else merge(after, {"plugins": {CRI[schema]: {"containerd": {"snapshotter": "overlayfs"}}}}),
        {**after, "plugins": {**after["plugins"], CRI[schema]: {"containerd": {"runtimes": {}}}}},
    ):
        with pytest.raises(EnvironmentFault, match="would not take"):
            drop_in.check(found, before, broken, choice)


def fake(tmp_path: Path, version: str) -> str:
    program = tmp_path / "containerd"
    program.write_text(f"#!/bin/sh\necho containerd github.com/containerd/containerd {version} abcdef\n")
    program.chmod(0o755)
    return str(program)


@pytest.mark.parametrize(
    ("printed", "text", "version", "schema"),
    [
        ("1.6.20~ds1", "version = 2\n", (1, 6), 2),
        ("v1.7.24", None, (1, 7), 2),
        ("1.6.20", "[grpc]\n", (1, 6), 1),
        ("v2.1.9", "version = 3\n", (2, 1), 3),
        ("v2.0.0", "version = 2\n", (2, 0), 2),
        ("v2.2.0", None, (2, 2), 3),
        ("v2.1.9", "[grpc]\n", (2, 1), 3),
        ("v2.1.9", "version = 1\n", (2, 1), 3),
    ],
)
def test_detection(tmp_path: Path, printed: str, text: str | None, version: tuple[int, int], schema: int) -> None:
    file = tmp_path / "config.toml"
    if text is not None:
        file.write_text(text)
    found = installed.detect(fake(tmp_path, printed), file)
    assert (found.version, found.schema) == (version, schema)


def test_what_is_too_old_or_unknown_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    for printed, pattern in (("1.5.9", "too old"), ("nonsense", "no version")):
        with pytest.raises(EnvironmentFault, match=pattern):
            installed.detect(fake(tmp_path, printed), file)
    file.write_text("version = 3\n")
    with pytest.raises(UsageError, match="version 3"):
        installed.detect(fake(tmp_path, "1.7.1"), file)
    with pytest.raises(EnvironmentFault) as error:
        installed.detect(str(tmp_path / "absent"), file)
    assert error.value.code == "missing-tool"


def test_imports_are_merged_as_containerd_does(tmp_path: Path) -> None:
    (tmp_path / "conf.d").mkdir()
    main = {"imports": ["conf.d/*.toml"], "plugins": {"a": {"x": 1, "y": {"z": 1}}, "b": {"k": 1}}}
    (tmp_path / "conf.d/1.toml").write_text("[plugins.a]\nq = 1\n[plugins.a.y]\nw = 2\n")
    old = Containerd("c", (1, 6), tmp_path / "config.toml", 2)
    assert old.plugins(main) == {"a": {"q": 1, "y": {"w": 2}}, "b": {"k": 1}}
    new = Containerd("c", (2, 0), tmp_path / "config.toml", 3)
    assert new.plugins(main) == {"a": {"x": 1, "q": 1, "y": {"z": 1, "w": 2}}, "b": {"k": 1}}
    assert installed.covers(tmp_path / "config.toml", ["conf.d/*.toml"], tmp_path / "conf.d/enclave-cc.toml")
    assert not installed.covers(tmp_path / "config.toml", ["other/*.toml"], tmp_path / "conf.d/enclave-cc.toml")
