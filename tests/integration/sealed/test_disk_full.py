"""A disk that is really full: a coded error, and not a byte left of what did not fit."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from sealed_mount import SEAL_KEY, ingest_tar
from test_fuse_mount import make_tar

from enclave_cc.enclave.rootfs.build import build_rootfs
from enclave_cc.enclave.rootfs.cache import NodeCache
from enclave_cc.errors import EnvironmentFault

pytestmark = pytest.mark.root

SMALL = make_tar({"file": os.urandom(500_000)})
LARGE = make_tar({"file": os.urandom(8 << 20)})


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[NodeCache]:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(tmp_path)], check=True)
    yield NodeCache(tmp_path, SEAL_KEY)
    subprocess.run(["umount", "-l", str(tmp_path)], check=True)


def free(cache: NodeCache) -> int:
    about = os.statvfs(cache.directory)
    return about.f_bavail * about.f_frsize


def test_a_layer_that_does_not_fit(cache: NodeCache) -> None:
    layer = ingest_tar(cache, SMALL)
    before = free(cache)
    with pytest.raises(EnvironmentFault) as caught:
        ingest_tar(cache, LARGE)
    assert caught.value.code == "disk-full"
    assert free(cache) >= before - 8192  # the lock file of the layer
    assert build_rootfs(cache, [layer]).layers == (layer.descriptor,)  # what was there is whole


def test_collecting_makes_room(cache: NodeCache) -> None:
    layer = ingest_tar(cache, SMALL)
    os.utime(cache.directory / "blobs" / layer.descriptor.file_name, (0, 0))
    before = free(cache)
    assert cache.collect(0) >= 500_000
    assert free(cache) >= before + 500_000
    assert cache.lookup_layer(layer.digest, layer.diff_id) is None
