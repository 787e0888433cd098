"""Which images are enclave images: told from containerd's content store, where manifests lie before layers are asked for.

An image with at least one encrypted layer is an enclave image as a whole: the agent pulls all of it. What is read here
decides only what the host downloads; whatever a host does to these files, an enclave checks everything itself.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence
from pathlib import Path

from enclave_cc.errors import PeerError
from enclave_cc.record import record
from enclave_cc.wire.oci.config import CONFIG_LIMIT, ImageConfig
from enclave_cc.wire.oci.digest import Digest
from enclave_cc.wire.oci.manifest import Manifest, parse_manifest
from enclave_cc.wire.oci.media_type import ENCRYPTED


def chain_ids(diff_ids: Sequence[Digest]) -> tuple[str, ...]:
    """The names of a stack of layers, lowest first (OCI image-spec, config.md, "Layer ChainID")."""
    chain: list[str] = []
    for diff_id in diff_ids:
        chain.append(Digest.of(f"{chain[-1]} {diff_id}".encode()) if chain else diff_id)
    return tuple(chain)


@record
class Image:
    """One manifest and what its configuration says. `user`: the USER of the image, `chain`: ids of its layers' stacks."""

    manifest_digest: str
    config_digest: str
    encrypted: bool
    chain: tuple[str, ...]
    user: str


class ContentStore:
    """Reads `blobs/sha256` of containerd's content store. Safe for many threads."""

    def __init__(self, directory: Path) -> None:
        self.blobs = directory / "blobs/sha256"
        self._lock = threading.Lock()
        self._known: dict[str, Image | None] = {}  # by blob name; None: no image manifest

    def find(self, manifest_digest: str) -> Image | None:
        """The image of a manifest; None when it is not there, or not an image's."""
        try:
            name = Digest.parse(manifest_digest).hex
        except PeerError:
            return None
        with self._lock:
            return self._read_image(name)

    def find_by_chain(self, chain_id: str) -> list[Image]:
        """Images whose layers, or whose lowest layers, are the stack `chain_id`."""
        with self._lock:
            return [image for image in self._scan() if chain_id in image.chain]

    def _scan(self) -> list[Image]:
        try:
            names = [path.name for path in self.blobs.iterdir()]
        except FileNotFoundError:
            names = []
        self._known = {name: self._known[name] for name in names if name in self._known}
        return [image for image in map(self._read_image, names) if image is not None]

    def _read_image(self, name: str) -> Image | None:
        if name in self._known:
            return self._known[name]
        data = self._read_json(name)
        if data is None:
            if (self.blobs / name).exists():
                self._known[name] = None  # a layer; content does not change
            return None
        try:
            manifest = parse_manifest(data)
        except PeerError:
            self._known[name] = None  # a config, an index or something else
            return None
        if not isinstance(manifest, Manifest):
            self._known[name] = None
            return None
        encrypted = any(layer.media_type.endswith(ENCRYPTED) for layer in manifest.layers)
        config_digest = str(manifest.config.digest)
        document = self._read_json(manifest.config.digest.hex)
        if document is None:
            return Image(f"sha256:{name}", config_digest, encrypted, (), "")  # being pulled: to be looked at again
        try:
            config = ImageConfig.parse(document)
        except PeerError:
            self._known[name] = None
            return None
        image = Image(f"sha256:{name}", config_digest, encrypted, chain_ids(config.diff_ids), config.user)
        self._known[name] = image
        return image

    def _read_json(self, name: str) -> bytes | None:
        """A blob that may be a JSON document; layers are told apart by size and first byte."""
        try:
            with (self.blobs / name).open("rb") as file:
                data = file.read(1)
                if data == b"{":
                    data += file.read(CONFIG_LIMIT)
        except OSError:
            return None
        if data[:1] != b"{" or len(data) > CONFIG_LIMIT:
            return None
        if hashlib.sha256(data).hexdigest() != name:
            return None  # damaged, or not a blob's name
        return data
