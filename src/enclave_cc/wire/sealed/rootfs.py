"""What mounts a root file system (docs/formats/sealed.md, section Rootfs descriptor). Carries keys."""

from __future__ import annotations

from collections.abc import Mapping

from enclave_cc.errors import PeerError
from enclave_cc.record import record
from enclave_cc.wire.sealed.block import Role
from enclave_cc.wire.sealed.descriptor import BlobDescriptor

VERSION = 1
DEVICE_BLOCK_SIZE = 512
# An OCI image has at most 127 layers in practice (overlayfs, Docker); EROFS takes 65,535 devices.
MAX_DEVICES = 1024


@record
class RootfsDescriptor:
    """EROFS metadata blob and its extra devices: the layers bottom first, then the spill blob if there is one.

    An image may hold the same layer twice; so may this.
    """

    metadata: BlobDescriptor
    layers: tuple[BlobDescriptor, ...]

    def __post_init__(self) -> None:
        roles = [layer.role for layer in self.layers]
        if self.metadata.role is not Role.METADATA:
            raise PeerError("malformed", "a rootfs descriptor's metadata blob has another role")
        if roles[-1:] == [Role.SPILL]:
            roles.pop()
        if any(role is not Role.LAYER for role in roles) or len(self.layers) > MAX_DEVICES:
            raise PeerError("malformed", "a rootfs descriptor's layers have other roles, or are too many")

    @property
    def blobs(self) -> tuple[BlobDescriptor, ...]:
        """All blobs, metadata first."""
        return (self.metadata, *self.layers)

    @property
    def named_blobs(self) -> tuple[tuple[str, BlobDescriptor], ...]:
        """(file name as served, blob): "meta", "0", "1", ...; device i + 1 is named str(i)."""
        return (("meta", self.metadata), *((str(i), layer) for i, layer in enumerate(self.layers)))

    def to_json(self) -> dict[str, object]:
        """Holds keys: seal or encrypt what you make of it."""
        return {"version": VERSION, "metadata": self.metadata.to_json(), "layers": [layer.to_json() for layer in self.layers]}

    @classmethod
    def from_json(cls, value: object) -> RootfsDescriptor:
        """Raises `PeerError("malformed")` for anything but the documented form."""
        if not isinstance(value, Mapping) or set(value) != {"version", "metadata", "layers"} or value["version"] != VERSION:
            raise PeerError("malformed", "a rootfs descriptor lacks members, has unknown ones, or has another version")
        layers = value["layers"]
        if not isinstance(layers, list) or len(layers) > MAX_DEVICES:
            raise PeerError("malformed", "a rootfs descriptor's layers are not a list, or too many")
        return cls(
            metadata=BlobDescriptor.from_json(value["metadata"]),
            layers=tuple(BlobDescriptor.from_json(layer) for layer in layers),
        )
