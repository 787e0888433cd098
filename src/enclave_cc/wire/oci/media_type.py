"""Media types of OCI image-spec 1.1, Docker's schema 2, ocicrypt and cosign, and what they say about a layer."""

from __future__ import annotations

from enclave_cc.errors import PeerError, foreign
from enclave_cc.record import record

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_EMPTY = "application/vnd.oci.empty.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
OCI_LAYER_NONDISTRIBUTABLE = "application/vnd.oci.image.layer.nondistributable.v1.tar"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar"
DOCKER_LAYER_GZIP = "application/vnd.docker.image.rootfs.diff.tar.gzip"
DOCKER_LAYER_ZSTD = "application/vnd.docker.image.rootfs.diff.tar.zstd"
DOCKER_LAYER_FOREIGN = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
SIMPLE_SIGNING = "application/vnd.dev.cosign.simplesigning.v1+json"
SIGSTORE_BUNDLE = "application/vnd.dev.sigstore.bundle.v0.3+json"
IN_TOTO = "application/vnd.in-toto+json"

MANIFESTS = (OCI_MANIFEST, DOCKER_MANIFEST)
INDEXES = (OCI_INDEX, DOCKER_LIST)
CONFIGS = (OCI_CONFIG, DOCKER_CONFIG)
ENCRYPTED = "+encrypted"


@record
class LayerType:
    """What a layer's media type says: its compression (`""`, `gzip` or `zstd`) and whether it is encrypted."""

    compression: str
    encrypted: bool

    @classmethod
    def parse(cls, media_type: str) -> LayerType:
        """Raises `PeerError("unsupported-image")` for anything but a tar layer that this project reads."""
        encrypted = media_type.endswith(ENCRYPTED)
        plain = media_type.removesuffix(ENCRYPTED)
        compression = _COMPRESSION.get(plain)
        if compression is None or (encrypted and plain in _DOCKER_LAYERS):  # ocicrypt names OCI types only
            raise PeerError("unsupported-image", f"a layer has the media type {foreign(media_type)}")
        return cls(compression, encrypted)

    def __str__(self) -> str:
        return OCI_LAYER + (f"+{self.compression}" if self.compression else "") + (ENCRYPTED if self.encrypted else "")


_DOCKER_LAYERS = {
    DOCKER_LAYER: "",
    DOCKER_LAYER_GZIP: "gzip",
    DOCKER_LAYER_ZSTD: "zstd",
    DOCKER_LAYER_FOREIGN: "gzip",
}
_COMPRESSION = {
    **{base + suffix: suffix[1:] for base in (OCI_LAYER, OCI_LAYER_NONDISTRIBUTABLE) for suffix in ("", "+gzip", "+zstd")},
    **_DOCKER_LAYERS,
}
