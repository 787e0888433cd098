"""Writes a prepared image to a registry, and reads back what is there."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from enclave_cc.errors import PeerError
from enclave_cc.owner.publish.encrypt import PreparedImage
from enclave_cc.transport.connections import Body
from enclave_cc.transport.registry import Registry
from enclave_cc.wire.oci.digest import Digest
from enclave_cc.wire.oci.manifest import Descriptor, Manifest, parse_manifest
from enclave_cc.wire.oci.reference import Reference

_WORKERS = 3


def push_image(registry: Registry, target: Reference, image: PreparedImage, progress: Callable[[str], None]) -> Digest:
    """Pushes blobs, then the manifest: under the target's digest, else its tag. Returns the manifest's digest.

    Raises what registries raise.
    """
    repository = target.repository

    def push_layer(layer: Descriptor) -> None:
        registry.push_blob(repository, layer.digest, Body(image.blobs[layer.digest], layer.size))
        progress(f"pushed {layer.digest} ({layer.size} bytes)")

    with ThreadPoolExecutor(_WORKERS) as pool:
        for _ in pool.map(push_layer, {layer.digest: layer for layer in image.manifest.layers}.values()):
            pass
    registry.push_blob(repository, image.manifest.config.digest, Body.of(image.config_bytes))
    return tag_image(registry, target, image)


def tag_image(registry: Registry, target: Reference, image: PreparedImage) -> Digest:
    """Pushes the manifest of an image whose blobs are there. Raises what registries raise."""
    return registry.push_manifest(target.repository, target.target, image.manifest_bytes, image.manifest.media_type)


def read_back(registry: Registry, target: Reference, image: PreparedImage) -> Manifest:
    """The manifest as the registry now serves it.

    1. Its bytes have the digest of what was pushed.
    2. The registry has every blob it lists.

    Raises `PeerError`: "digest-mismatch", "registry-failed".
    """
    data, kind, digest = registry.get_manifest(target.repository, target.target)
    if digest != image.digest:  # 1
        raise PeerError("digest-mismatch", f"{target.registry} serves another manifest than was pushed")
    manifest = parse_manifest(data, kind)
    if not isinstance(manifest, Manifest):
        raise PeerError("digest-mismatch", f"{target.registry} serves an index in place of the manifest")
    for descriptor in (manifest.config, *manifest.layers):  # 2
        if not registry.has_blob(target.repository, descriptor.digest):
            raise PeerError("registry-failed", f"{target.registry} took {descriptor.digest}, and does not have it")
    return manifest
