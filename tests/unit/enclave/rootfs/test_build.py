"""From layers in the cache to a rootfs descriptor: built once, spilled where content is not in place."""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from enclave_cc.crypto.secret import Secret
from enclave_cc.enclave.image.layer import ingest_layer
from enclave_cc.enclave.rootfs import build
from enclave_cc.enclave.rootfs.cache import NodeCache
from enclave_cc.enclave.rootfs.layer import Layer
from enclave_cc.enclave.rootfs.sealed_reader import SealedReader
from enclave_cc.errors import PeerError
from enclave_cc.wire.sealed.block import Role

BODY = b"0123456789abcdef" * 400


def make_tar(name: str, *, sparse: bool = False) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        info = tarfile.TarInfo(name)
        body = BODY
        if sparse:  # pax sparse 1.0: a map, then data that no longer starts on the file's grid
            body = b"2\n100\n3000\n9000\n3400\n".ljust(512, b"\0") + BODY
            info.pax_headers = {
                "GNU.sparse.major": "1",
                "GNU.sparse.minor": "0",
                "GNU.sparse.realsize": "12400",
                "GNU.sparse.name": name,
            }
        info.size = len(body)
        tar.addfile(info, io.BytesIO(body))
    return out.getvalue()


def ingest(cache: NodeCache, tar: bytes) -> Layer:
    name = "sha256:" + hashlib.sha256(tar).hexdigest()
    layer = ingest_layer(
        [tar], digest=name, size=len(tar), diff_id=name, media_type="application/vnd.oci.image.layer.v1.tar", cipher=None,
        directory=cache.directory, progress=lambda done: None,
    )  # fmt: skip
    cache.store_layer(layer)
    return layer


@pytest.fixture
def cache(tmp_path: Path) -> NodeCache:
    return NodeCache(tmp_path, Secret(bytes(16)))


def blob_names(cache: NodeCache) -> set[str]:
    return {path.name for path in (cache.directory / "blobs").iterdir()}


def test_the_metadata_blob_is_an_erofs_image(cache: NodeCache) -> None:
    layers = [ingest(cache, make_tar(name)) for name in ("a", "b")]
    rootfs = build.build_rootfs(cache, layers)
    assert rootfs.layers == tuple(layer.descriptor for layer in layers)
    assert rootfs.metadata.role is Role.METADATA
    with SealedReader(cache.directory, rootfs.metadata) as reader:
        assert reader.read(1024, 4) == b"\xe2\xe1\xf5\xe0"


def test_it_is_built_once(cache: NodeCache, monkeypatch: pytest.MonkeyPatch) -> None:
    layers = [ingest(cache, make_tar(name)) for name in ("a", "b")]
    rootfs = build.build_rootfs(cache, layers)
    monkeypatch.setattr(build, "merge", None)
    assert build.build_rootfs(cache, layers) == rootfs


def test_a_sparse_file_off_the_grid_is_spilled(cache: NodeCache) -> None:
    rootfs = build.build_rootfs(cache, [ingest(cache, make_tar("holes", sparse=True))])
    assert [blob.role for blob in rootfs.layers] == [Role.LAYER, Role.SPILL]
    with SealedReader(cache.directory, rootfs.layers[1]) as reader:
        spilled = reader.read(0, 1 << 20)
    assert BODY[:412] in spilled


def test_the_same_layer_twice(cache: NodeCache) -> None:
    layer = ingest(cache, make_tar("a"))
    assert build.build_rootfs(cache, [layer, layer]).layers == (layer.descriptor,) * 2


def test_what_cannot_be_built_leaves_no_blob(cache: NodeCache, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = ingest(cache, make_tar("holes", sparse=True))
    before = blob_names(cache)
    with (cache.directory / "blobs" / layer.descriptor.file_name).open("r+b") as file:
        file.write(bytes(100))
    with pytest.raises(PeerError) as caught:
        build.build_rootfs(cache, [layer])
    assert caught.value.code == "seal-broken"
    assert blob_names(cache) == before


def write_unfinished(tree: object, sizes: Sequence[int], *, spill: build._Spill) -> bytes:
    spill.write(b"half")
    raise PeerError("unsupported-image", "too much")


def test_a_half_written_spill_is_thrown_away(cache: NodeCache, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = ingest(cache, make_tar("a"))
    before = blob_names(cache)
    monkeypatch.setattr(build, "write_metadata", write_unfinished)
    with pytest.raises(PeerError):
        build.build_rootfs(cache, [layer])
    assert blob_names(cache) == before
