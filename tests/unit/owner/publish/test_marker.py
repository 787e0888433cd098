"""The marker layer: what it adds, and that it changes nothing else."""

from __future__ import annotations

import io
import json
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[4]
if str(ROOT) not in sys.path:  # pytest started as a script does not put it there
    sys.path.insert(0, str(ROOT))

from tests.unit.owner.publish.test_encrypt import KEK, load, make_layout, silent  # noqa: E402

from enclave_cc.errors import UsageError  # noqa: E402
from enclave_cc.owner.publish import encrypt, layout, marker  # noqa: E402
from enclave_cc.record import replace  # noqa: E402
from enclave_cc.wire.oci.digest import Digest  # noqa: E402
from enclave_cc.wire.oci.manifest import LAYER_LIMIT  # noqa: E402


def test_a_marker_is_one_layer_of_no_file(tmp_path: Path) -> None:
    image = load(make_layout(tmp_path / "layout"))
    marked = marker.add_marker(image)
    assert marked.manifest.layers[1:] == image.manifest.layers
    assert marked.config.diff_ids[1:] == image.config.diff_ids
    bottom = b"".join(marked.open_layer(marked.manifest.layers[0]))
    assert Digest.of(bottom) == marked.manifest.layers[0].digest == marked.config.diff_ids[0]
    with tarfile.open(fileobj=io.BytesIO(bottom)) as archive:
        (root,) = archive.getmembers()
    assert (root.name, root.isdir(), root.mode, root.uid, root.gid, root.mtime) == (".", True, 0o755, 0, 0, 0)
    assert b"".join(marked.open_layer(marked.manifest.layers[2])) == b"".join(image.open_layer(image.manifest.layers[1]))


def test_no_two_images_have_one_marker(tmp_path: Path) -> None:
    image = load(make_layout(tmp_path / "layout"))
    marked = [marker.add_marker(image) for _ in range(3)]
    assert len({m.config.diff_ids[0] for m in marked}) == len({m.manifest.config.digest for m in marked}) == 3


def test_the_rest_of_the_configuration_stays(tmp_path: Path) -> None:
    image = load(make_layout(tmp_path / "layout"))
    document = json.loads(image.config_bytes)
    document |= {"config": {"Labels": {"ü": "\u2028"}}, "big": 2**60, "history": [{"created_by": "a"}, {"empty_layer": True}]}
    marked = marker.add_marker(replace(image, config_bytes=json.dumps(document).encode()))
    shown = json.loads(marked.config_bytes)
    assert shown["history"] == [{"created_by": marker.HISTORY}, *document["history"]]
    assert shown["rootfs"].pop("diff_ids")[1:] == document["rootfs"].pop("diff_ids")
    del shown["history"], document["history"]
    assert shown == document
    assert "history" not in json.loads(marker.add_marker(image).config_bytes)


@pytest.mark.parametrize(("layers", "encrypted"), [("all", (0, 1, 2)), ("0", (0, 1)), ("-1", (0, 2))])
def test_a_marker_is_encrypted_and_not_counted(tmp_path: Path, layers: str, encrypted: tuple[int, ...]) -> None:
    image = marker.add_marker(load(make_layout(tmp_path / "layout")))
    prepared = encrypt.encrypt_image(image, KEK, layers=layers, staging=tmp_path, progress=silent)
    assert prepared.encrypted == encrypted
    kinds = [layer.media_type.endswith("+encrypted") for layer in prepared.manifest.layers]
    assert kinds == [number in encrypted for number in range(3)]
    encrypt.check_encryption(image, prepared, layout.write_layout(tmp_path / "out", "t", prepared), KEK)


def test_the_marker_is_one_layer_too_many(tmp_path: Path) -> None:
    image = load(make_layout(tmp_path / "layout"))
    full = replace(image, manifest=replace(image.manifest, layers=image.manifest.layers[:1] * LAYER_LIMIT))
    with pytest.raises(UsageError, match="--no-marker"):
        marker.add_marker(full)
