"""Random layers over a few names, so that they collide: umoci and we make the same tree, or both refuse."""

from __future__ import annotations

import shutil
import subprocess
import tarfile
import tempfile
import time
from pathlib import Path

import pytest
from erofs_mount import mounted, write_image
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from oci_layout import LayerBuilder, unpack_with_umoci, write_layout
from tree_comparison import differences, snapshot

from enclave_cc.errors import PeerError

pytestmark = pytest.mark.root

names = st.sampled_from(["a", "b", "c"])
paths = st.lists(names, min_size=1, max_size=3).map("/".join)
targets = st.sampled_from(["a", "b/c", "../a", "/b", "/a/b", "..", ".", "/", "../../c", "missing"])
directories = st.tuples(st.just("directory"), paths, st.sampled_from([0o755, 0o700, 0o2775, 0o1777]))
members = st.one_of(
    directories,
    directories,  # twice, or most images have a file below a file, which both refuse
    st.tuples(st.just("file"), paths, st.binary(max_size=3)),
    st.tuples(st.just("symlink"), paths, targets),
    st.tuples(st.just("hardlink"), paths, paths),
    st.tuples(st.just("whiteout"), paths, st.none()),
    st.tuples(st.just("opaque"), paths, st.none()),
)


def build(description: list[tuple[str, str, object]]) -> bytes:
    layer = LayerBuilder()
    for kind, path, value in description:
        above, _, name = path.rpartition("/")
        prefix = above + "/" if above else ""
        match kind:
            case "file":
                layer.add(path, body=value, uid=len(path))
            case "directory":
                layer.directory(path, mode=value, gid=50 + len(path))
            case "symlink":
                layer.symlink(path, value)
            case "hardlink":
                layer.hardlink(path, value)
            case "whiteout":
                layer.add(f"{prefix}.wh.{name}")
            case "opaque":
                layer.add(f"{path}/.wh..wh..opq")
    return layer.add("last", tarfile.FIFOTYPE).finish()


@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck), database=None)
@given(st.lists(st.lists(members, max_size=6), min_size=1, max_size=4))
def test_random_layers(description: list[list[tuple[str, str, object]]]) -> None:
    layers = [build(layer) for layer in description]
    directory = Path(tempfile.mkdtemp(prefix="ecc-umoci-"))
    started = time.time_ns()
    try:
        layout = write_layout(directory / "layout", layers)
        try:
            rootfs = unpack_with_umoci(layout, directory / "bundle")
        except subprocess.CalledProcessError:
            with pytest.raises(PeerError):
                write_image(directory / "image", layers)
            return
        expected = snapshot(rootfs)
        image, devices = write_image(directory / "image", layers)
        with mounted(image, devices, directory / "mnt") as mount:
            found = snapshot(mount)
        # Directories that no layer describes get the time of unpacking from umoci.
        undated = [path for path, seen in expected.items() if seen["type"] == "d" and seen["mtime"] >= started - 10_000_000]
        assert differences(expected, found, ignore_mtime_of=undated) == []
    finally:
        shutil.rmtree(directory)
