"""The marker: a layer without a file at the bottom of an image, which makes its stack of layers and its configuration its own.

containerd takes two images with equal lowest layers, or with one configuration, for the same thing. An ordinary image and
its encrypted twin are not: the layers of one are on the node, those of the other inside the enclave (docs/adr/0014-marker.md).
"""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Iterator
from typing import Any

from enclave_cc.errors import UsageError
from enclave_cc.owner.publish.sources import Source, SourceImage
from enclave_cc.record import replace
from enclave_cc.wire.oci import media_type as media
from enclave_cc.wire.oci.config import ImageConfig
from enclave_cc.wire.oci.digest import Digest
from enclave_cc.wire.oci.manifest import LAYER_LIMIT, Descriptor

HISTORY = "enclave-cc marker layer"
_END_OF_ARCHIVE = bytes(2 * tarfile.BLOCKSIZE)


def add_marker(image: SourceImage) -> SourceImage:
    """The same image on a marker of its own. Raises `UsageError("usage")` when it has as many layers as can be."""
    if len(image.manifest.layers) >= LAYER_LIMIT:
        raise UsageError("usage", f"the image has {len(image.manifest.layers)} layers: none can be added", "Use --no-marker.")
    layer = make_layer(os.urandom(16))
    descriptor = Descriptor(media.OCI_LAYER, Digest.of(layer), len(layer))
    config = _put_below(image.config_bytes, descriptor.digest)
    about = Descriptor(image.manifest.config.media_type, Digest.of(config), len(config), image.manifest.config.annotations)
    manifest = replace(image.manifest, config=about, layers=(descriptor, *image.manifest.layers))
    return replace(
        image,
        source=_Marked(image.source, descriptor.digest, layer),
        manifest=manifest,
        manifest_bytes=manifest.encode(),
        config=ImageConfig.parse(config),
        config_bytes=config,
        marked=True,
    )


def make_layer(name: bytes) -> bytes:
    """A tar archive that says of the root directory what holds anyway, with a comment (POSIX pax, extended header).

    A global header alone, which would name no file at all, is not understood by umoci.
    """
    root = tarfile.TarInfo("./")
    root.type, root.mode = tarfile.DIRTYPE, 0o755
    root.pax_headers = {"comment": f"enclave-cc {name.hex()}"}
    return root.tobuf(tarfile.PAX_FORMAT) + _END_OF_ARCHIVE


def _put_below(config: bytes, diff_id: Digest) -> bytes:
    """The configuration with one more lowest layer, and all else as it was."""
    document: dict[str, Any] = json.loads(config)
    document["rootfs"]["diff_ids"] = [str(diff_id), *document["rootfs"]["diff_ids"]]
    if document.get("history"):
        document["history"] = [{"created_by": HISTORY}, *document["history"]]
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()


class _Marked:
    """A source that also has the marker."""

    def __init__(self, source: Source, digest: Digest, layer: bytes) -> None:
        self._source, self._digest, self._layer = source, digest, layer

    def root(self) -> tuple[bytes, str]:
        return self._source.root()

    def manifest(self, descriptor: Descriptor) -> bytes:
        return self._source.manifest(descriptor)

    def open(self, descriptor: Descriptor) -> Iterator[bytes]:
        if descriptor.digest == self._digest:
            return iter((self._layer,))
        return self._source.open(descriptor)
