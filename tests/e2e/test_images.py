"""Real images, whole: what an app enclave mounts equals what `umoci unpack` makes of the image that was published."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

import testbed as testbeds

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "integration/rootfs"))

import debian_tree
import test_umoci_equality
from oci_layout import unpack_with_umoci, write_layout
from tree_comparison import differences, snapshot

from enclave_cc.enclave.boot import settings

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.usefixtures("clean")]


def mounted_image(pod: str) -> Path:
    """The read-only tree that the pod's boot init mounted, seen through its mount namespace (root may look: simulation)."""
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            line, groups = (directory / "cmdline").read_bytes(), (directory / "cgroup").read_text()
        except OSError:
            continue
        if b"enclave_cc.enclave.boot" in line and pod in groups:
            tree = directory / "root" / settings.WORK_DIRECTORY.lstrip("/") / "image"
            if tree.exists():
                return tree
    raise AssertionError(f"no boot init of pod {pod} is found")


def test_a_debian_python_image(testbed: testbeds.Testbed, tmp_path: Path) -> None:
    tree = debian_tree.debian_tree()
    source = testbeds.make_image(tmp_path / "layout", "latest", tree, "--config.cmd", "/usr/bin/python3")
    expected = snapshot(unpack_with_umoci(tmp_path / "layout", tmp_path / "bundle"))
    assert len(expected) > 5000
    assert sum(entry.get("size", 0) for entry in expected.values()) > 50 << 20
    image = testbed.publish(source, "debian", "--allow", "command")
    script = "import ssl, sqlite3, hashlib, threading; print(sum(range(10)), ssl.OPENSSL_VERSION.split()[0])"
    assert testbed.cli("run", "--rm", "--quiet", image, "python3", "-c", script).stdout == "45 OpenSSL\n"
    pod = testbed.cli("run", "-d", image, "sleep", "300").stdout.strip()
    assert differences(expected, snapshot(mounted_image(pod))) == []
    ids = testbed.cli("run", "--rm", "--quiet", image, "sh", "-c", "getent passwd | wc -l; ls / | sort | tr '\\n' ' '").stdout
    assert int(ids.split()[0]) == len((tree / "etc/passwd").read_text().splitlines())


def test_an_image_with_everything_in_it(testbed: testbeds.Testbed, tmp_path: Path) -> None:
    layers = test_umoci_equality.crafted_layers()
    layout = write_layout(tmp_path / "layout", [*layers, busybox_layer(tmp_path)])
    expected = snapshot(unpack_with_umoci(layout, tmp_path / "bundle"))
    image = testbed.publish(f"{layout}:latest", "crafted", "--allow", "command")
    shown = json.loads(testbed.cli("image", "inspect", image, "--insecure", "--json").stdout)
    assert all(layer["media_type"].endswith("+encrypted") for layer in shown["layers"])
    pod = testbed.cli("run", "-d", image, "/busybox-static", "sleep", "300").stdout.strip()
    # umoci dates what no layer describes, the root here too, by the time of unpacking.
    undated = [*test_umoci_equality.UNDATED, "."]
    assert differences(expected, snapshot(mounted_image(pod)), ignore_mtime_of=undated) == []


def busybox_layer(directory: Path) -> bytes:
    from oci_layout import LayerBuilder

    return LayerBuilder().add("busybox-static", body=Path("/bin/busybox").read_bytes(), mode=0o755).finish()
