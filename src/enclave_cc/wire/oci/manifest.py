"""Image manifests and indexes (OCI image-spec 1.1 manifest.md, image-index.md; Docker schema 2 and lists)."""

from __future__ import annotations

from collections.abc import Mapping

from enclave_cc.errors import PeerError, foreign
from enclave_cc.record import field, record
from enclave_cc.wire.oci import media_type as media
from enclave_cc.wire.oci.digest import Digest
from enclave_cc.wire.oci.document import Document, encode_json

LAYER_LIMIT = 255  # layers of one image; overlay and docker stop at 127, EROFS takes 255 extra devices
_INDEX_LIMIT = 1024  # manifests of one index


@record
class Platform:
    """Which machine a manifest of an index is for."""

    os: str
    architecture: str
    variant: str = ""

    @classmethod
    def parse(cls, text: str) -> Platform:
        """`os/architecture[/variant]`. Raises `PeerError("malformed")`."""
        parts = text.split("/")
        if len(parts) not in (2, 3) or not all(parts):
            raise PeerError("malformed", f"{foreign(text)!r} is not OS/ARCHITECTURE[/VARIANT]")
        return cls(*parts)

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)


LINUX_AMD64 = Platform("linux", "amd64")


@record
class Descriptor:
    """What a document says about a blob: its type, digest and size in bytes."""

    media_type: str
    digest: Digest
    size: int
    annotations: Mapping[str, str] = field(default_factory=dict)
    platform: Platform | None = None
    artifact_type: str = ""

    @classmethod
    def read(cls, document: Document) -> Descriptor:
        """Raises `PeerError("malformed")`. Members `urls` and `data` are not followed."""
        platform = None
        if document.has("platform"):
            inner = document.document("platform")
            platform = Platform(inner.text("os", ""), inner.text("architecture", ""), inner.text("variant", ""))
        return cls(
            media_type=document.text("mediaType"),
            digest=Digest.parse(document.text("digest")),
            size=document.number("size"),
            annotations=document.text_map("annotations"),
            platform=platform,
            artifact_type=document.text("artifactType", ""),
        )

    def to_json(self) -> dict[str, object]:
        value: dict[str, object] = {"mediaType": self.media_type, "digest": str(self.digest), "size": self.size}
        if self.annotations:
            value["annotations"] = dict(self.annotations)
        if self.platform is not None:
            value["platform"] = {"os": self.platform.os, "architecture": self.platform.architecture}
            if self.platform.variant:
                value["platform"] = {**value["platform"], "variant": self.platform.variant}  # type: ignore[dict-item]
        if self.artifact_type:
            value["artifactType"] = self.artifact_type
        return value


@record
class Manifest:
    """One image (or artifact) for one platform."""

    media_type: str
    config: Descriptor
    layers: tuple[Descriptor, ...]
    annotations: Mapping[str, str] = field(default_factory=dict)
    artifact_type: str = ""
    subject: Descriptor | None = None

    def encode(self) -> bytes:
        value: dict[str, object] = {
            "schemaVersion": 2,
            "mediaType": self.media_type,
            "config": self.config.to_json(),
            "layers": [layer.to_json() for layer in self.layers],
        }
        if self.annotations:
            value["annotations"] = dict(self.annotations)
        if self.artifact_type:
            value["artifactType"] = self.artifact_type
        if self.subject is not None:
            value["subject"] = self.subject.to_json()
        return encode_json(value)


@record
class Index:
    """The manifests of one image for several platforms, or a list of referrers."""

    media_type: str
    manifests: tuple[Descriptor, ...]
    annotations: Mapping[str, str] = field(default_factory=dict)

    def select(self, platform: Platform) -> Descriptor:
        """The first manifest for `platform`. Raises `PeerError("unsupported-image")` when there is none."""
        images = [d for d in self.manifests if d.media_type in media.MANIFESTS and d.platform is not None]
        for descriptor in images:
            found = descriptor.platform
            if found is not None and (found.os, found.architecture) == (platform.os, platform.architecture):
                if platform.variant and found.variant != platform.variant:
                    continue
                return descriptor
        offered = ", ".join(foreign(d.platform) for d in images[:16]) or "no platform at all"
        raise PeerError("unsupported-image", f"the image is not for {platform} but for {offered}")

    def encode(self) -> bytes:
        value: dict[str, object] = {
            "schemaVersion": 2,
            "mediaType": self.media_type,
            "manifests": [manifest.to_json() for manifest in self.manifests],
        }
        if self.annotations:
            value["annotations"] = dict(self.annotations)
        return encode_json(value)


def parse_manifest(data: bytes, content_type: str | None = None) -> Manifest | Index:
    """Reads a manifest or an index; `content_type` is what the registry or the descriptor called it.

    Raises `PeerError`: "malformed", or "unsupported-image" for types this project does not read (Docker schema 1).
    """
    document = Document.parse(data, "the manifest")
    if document.number("schemaVersion", 0) != 2:
        raise PeerError("unsupported-image", "the manifest is not of schema version 2")
    inner = document.text("mediaType", "")
    outer = (content_type or "").partition(";")[0].strip().lower()
    if outer and outer not in media.MANIFESTS + media.INDEXES:
        raise PeerError("unsupported-image", f"the manifest has the media type {foreign(outer)}")
    if inner and outer and inner != outer:
        document.fail("its mediaType is not the one it is served as")
    is_index = document.has("manifests")
    if is_index == (document.has("layers") or document.has("config")):
        document.fail("it must have either layers or manifests")
    kind = inner or outer or (media.OCI_INDEX if is_index else media.OCI_MANIFEST)
    if kind not in (media.INDEXES if is_index else media.MANIFESTS):
        document.fail("its members are not those of its mediaType")
    if is_index:
        manifests = tuple(Descriptor.read(item) for item in document.documents("manifests"))
        if len(manifests) > _INDEX_LIMIT:
            document.fail(f"more than {_INDEX_LIMIT} manifests")
        return Index(kind, manifests, document.text_map("annotations"))
    if not document.has("config"):
        document.fail("no config")
    layers = tuple(Descriptor.read(item) for item in document.documents("layers"))
    if len(layers) > LAYER_LIMIT:
        document.fail(f"more than {LAYER_LIMIT} layers")
    return Manifest(
        media_type=kind,
        config=Descriptor.read(document.document("config")),
        layers=layers,
        annotations=document.text_map("annotations"),
        artifact_type=document.text("artifactType", ""),
        subject=Descriptor.read(document.document("subject")) if document.has("subject") else None,
    )
