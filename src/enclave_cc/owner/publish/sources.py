"""Where an image comes from: an OCI layout, an OCI or Docker archive, or a registry; one face for all.

DIR[:TAG]  oci:DIR[:TAG]           OCI layout (image-spec, image-layout.md)
FILE[:TAG] oci-archive:FILE[:TAG]  the same in a tar archive
FILE       docker-archive:FILE[:REFERENCE]  what `docker save` makes
REFERENCE  docker://REFERENCE      a registry
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

from enclave_cc.errors import PeerError, UsageError, foreign
from enclave_cc.owner.publish import files
from enclave_cc.record import record
from enclave_cc.transport.registry import Registry
from enclave_cc.wire.oci import media_type as media
from enclave_cc.wire.oci.config import CONFIG_LIMIT, ImageConfig
from enclave_cc.wire.oci.digest import Digest
from enclave_cc.wire.oci.document import Document
from enclave_cc.wire.oci.manifest import Descriptor, Index, Manifest, Platform, parse_manifest
from enclave_cc.wire.oci.reference import Reference

REF_NAME = "org.opencontainers.image.ref.name"
_GZIP = b"\x1f\x8b"
Connect = Callable[[str], Registry]  # a client of the registry at HOST[:PORT]


class Source(Protocol):
    """Something that holds images. Blobs are opened by many threads."""

    def root(self) -> tuple[bytes, str]:
        """The manifest or index, and its media type."""
        ...

    def manifest(self, descriptor: Descriptor) -> bytes:
        """A manifest that the index lists."""
        ...

    def open(self, descriptor: Descriptor) -> Iterator[bytes]:
        """A blob, not yet checked."""
        ...


@record
class SourceImage:
    """One image for one platform out of a source, with every document checked against its descriptor."""

    source: Source
    manifest: Manifest
    manifest_bytes: bytes
    config: ImageConfig
    config_bytes: bytes
    platforms: tuple[str, ...]  # others that the source's index offers, not taken
    marked: bool = False  # layer 0 is a marker of ours

    def open_layer(self, layer: Descriptor) -> Iterator[bytes]:
        """A layer's bytes. Raises `PeerError("digest-mismatch")` at its end if they are not what the manifest says."""
        digest, size = hashlib.sha256(), 0
        for chunk in self.source.open(layer):
            size += len(chunk)
            digest.update(chunk)
            yield chunk
        if size != layer.size or digest.hexdigest() != layer.digest.hex:
            raise PeerError("digest-mismatch", f"the source's layer {layer.digest} has other bytes", "Make the source anew.")


def open_source(text: str, connect: Connect) -> Source:
    """Finds out what SRC means, by its prefix or by what lies there. Raises `UsageError` and what registries raise."""
    prefix, colon, rest = text.partition(":")
    if colon and prefix in {"oci", "oci-archive", "docker-archive"}:
        path, tag = _split_tag(rest)
        if not path.exists():
            raise UsageError("not-found", f"there is no {path}", "Check the path.")
        if prefix == "docker-archive":
            return DockerArchive(files.ArchiveFiles(path), tag)
        return OciLayout(files.ArchiveFiles(path) if prefix == "oci-archive" else files.DirectoryFiles(path), tag, str(path))
    if text.startswith("docker://"):
        return RegistrySource(Reference.parse(text.removeprefix("docker://")), connect)
    path, tag = _split_tag(text)
    if path.is_dir():
        return OciLayout(files.DirectoryFiles(path), tag, str(path))
    if path.is_file():
        archive = files.ArchiveFiles(path)
        if "oci-layout" in archive.names():
            return OciLayout(archive, tag, str(path))
        return DockerArchive(archive, tag)
    if text.startswith((".", "/")):
        raise UsageError("not-found", f"there is no {path}", "Check the path.")
    return RegistrySource(Reference.parse(text), connect)


def load_image(source: Source, platform: Platform) -> SourceImage:
    """The image for `platform`. Raises `PeerError`: "digest-mismatch", "malformed", "unsupported-image"."""
    data, kind = source.root()
    found = parse_manifest(data, kind)
    others: tuple[str, ...] = ()
    if isinstance(found, Index):
        chosen = found.select(platform)
        others = tuple(str(d.platform) for d in found.manifests if d.platform and d is not chosen and d.platform.os != "unknown")
        data = chosen.digest.check(source.manifest(chosen), "the source's manifest")
        found = parse_manifest(data, chosen.media_type)
    if not isinstance(found, Manifest) or found.config.media_type not in media.CONFIGS:
        raise PeerError("unsupported-image", "the source is not an image but an artifact of another kind")
    if found.config.size > CONFIG_LIMIT:
        raise PeerError("malformed", f"the image configuration is larger than {CONFIG_LIMIT} bytes")
    config_bytes = found.config.digest.check(b"".join(source.open(found.config)), "the source's image configuration")
    config = ImageConfig.parse(config_bytes)
    if len(config.diff_ids) != len(found.layers):
        raise PeerError("malformed", f"{len(config.diff_ids)} diff ids for {len(found.layers)} layers")
    return SourceImage(source, found, data, config, config_bytes, others)


class OciLayout:
    """An image layout; `tag` picks by `org.opencontainers.image.ref.name`, and may be left out if there is one image."""

    def __init__(self, layout: files.Files, tag: str | None, name: str) -> None:
        self._files = layout
        Document.parse(files.read_document(layout, "oci-layout"), "oci-layout").text("imageLayoutVersion")
        index = parse_manifest(files.read_document(layout, "index.json"), media.OCI_INDEX)
        if not isinstance(index, Index):
            raise PeerError("malformed", "index.json is not an index")
        found = [d for d in index.manifests if tag is None or d.annotations.get(REF_NAME) == tag]
        if len(found) != 1:
            tags = ", ".join(sorted({foreign(d.annotations.get(REF_NAME, "(no tag)")) for d in index.manifests}))
            what = f"{name} has {len(found)} images" + (f" tagged {foreign(tag)}" if tag else "")
            raise UsageError("not-found", what, f"Write DIR:TAG with one of: {tags or '(none)'}.")
        self._root = found[0]

    def root(self) -> tuple[bytes, str]:
        return self.manifest(self._root), self._root.media_type

    def manifest(self, descriptor: Descriptor) -> bytes:
        return descriptor.digest.check(files.read_document(self._files, _blob_path(descriptor.digest)), "a manifest of the layout")

    def open(self, descriptor: Descriptor) -> Iterator[bytes]:
        return self._files.open(_blob_path(descriptor.digest))


class DockerArchive:
    """`docker save`'s older format (manifest.json); its manifest is made here, from the config and the layer files."""

    def __init__(self, archive: files.Files, reference: str | None) -> None:
        self._files = archive
        data = b'{"images":' + files.read_document(archive, "manifest.json") + b"}"
        images = Document.parse(data, "manifest.json").documents("images")
        chosen = [image for image in images if reference is None or _is_tagged(image, reference)]
        if len(chosen) != 1:
            tags = ", ".join(sorted(foreign(tag) for image in images for tag in image.texts("RepoTags")))
            raise UsageError("not-found", f"the archive has {len(chosen)} such images", f"Write FILE:REFERENCE, one of: {tags}.")
        self._names: dict[Digest, str] = {}
        config = self._describe(chosen[0].text("Config"), media.OCI_CONFIG)
        layers = tuple(self._describe(name, None) for name in chosen[0].texts("Layers"))
        self._manifest = Manifest(media.OCI_MANIFEST, config, layers)

    def _describe(self, name: str, media_type: str | None) -> Descriptor:
        digest, head, size = hashlib.sha256(), b"", 0
        for chunk in self._files.open(name):
            head = head or chunk[:2]
            digest.update(chunk)
            size += len(chunk)
        found = Digest.parse("sha256:" + digest.hexdigest())
        self._names[found] = name
        return Descriptor(media_type or media.OCI_LAYER + ("+gzip" if head == _GZIP else ""), found, size)

    def root(self) -> tuple[bytes, str]:
        return self._manifest.encode(), media.OCI_MANIFEST

    def manifest(self, descriptor: Descriptor) -> bytes:
        raise PeerError("unsupported-image", "a docker archive holds no index")

    def open(self, descriptor: Descriptor) -> Iterator[bytes]:
        return self._files.open(self._names[descriptor.digest])


class RegistrySource:
    """An image in a registry."""

    def __init__(self, reference: Reference, connect: Connect) -> None:
        self.reference = reference
        self._registry = connect(reference.registry)

    def root(self) -> tuple[bytes, str]:
        data, kind, _ = self._registry.get_manifest(self.reference.repository, self.reference.target)
        return data, kind

    def manifest(self, descriptor: Descriptor) -> bytes:
        return self._registry.get_manifest(self.reference.repository, descriptor.digest)[0]

    def open(self, descriptor: Descriptor) -> Iterator[bytes]:
        return self._registry.open_blob(self.reference.repository, descriptor.digest, descriptor.size)


def _split_tag(text: str) -> tuple[Path, str | None]:
    """PATH[:TAG]; a path that exists as it stands has no tag, whatever colons are in it."""
    if Path(text).exists() or ":" not in text:
        return Path(text), None
    path, _, tag = text.partition(":")
    while not Path(path).exists() and ":" in tag:  # colons in the path, and in a docker reference
        more, _, tag = tag.partition(":")
        path = f"{path}:{more}"
    return Path(path), tag


def _is_tagged(image: Document, reference: str) -> bool:
    wanted = Reference.parse(reference).with_default_tag()
    return any(Reference.parse_hostile(tag).with_default_tag() == wanted for tag in image.texts("RepoTags"))


def _blob_path(digest: Digest) -> str:
    return f"blobs/sha256/{digest.hex}"
