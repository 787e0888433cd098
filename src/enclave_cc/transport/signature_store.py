"""Signatures as a registry keeps them: cosign's `.sig` tag, and sigstore bundles among the referrers.

What comes from here is not verified.
"""

from __future__ import annotations

import base64
import binascii

from enclave_cc.errors import PeerError
from enclave_cc.transport.registry import Registry
from enclave_cc.wire.oci import media_type as media
from enclave_cc.wire.oci import signature as formats
from enclave_cc.wire.oci.digest import Digest
from enclave_cc.wire.oci.manifest import Manifest, parse_manifest

_LIMIT = 32  # signatures looked at; each costs a request


def fetch_tagged(registry: Registry, repository: str, digest: Digest) -> list[formats.Signature]:
    """The signatures under `sha256-<hex>.sig`; none if there is no such tag. Raises what registries raise."""
    try:
        data, kind, _ = registry.get_manifest(repository, formats.signature_tag(digest))
    except PeerError as error:
        if error.code == "image-not-found":
            return []
        raise
    manifest = parse_manifest(data, kind)
    if not isinstance(manifest, Manifest):
        return []
    found = []
    payloads: dict[Digest, bytes] = {}
    for layer in manifest.layers[:_LIMIT]:
        encoded = layer.annotations.get(formats.SIGNATURE_ANNOTATION)
        if layer.media_type != media.SIMPLE_SIGNING or encoded is None:
            continue
        try:
            signature = base64.b64decode(encoded, validate=True)
        except (binascii.Error, ValueError):
            signature = b""  # kept, so that it counts as a broken signature and not as a missing one
        if layer.digest not in payloads:
            payloads[layer.digest] = registry.get_blob(repository, layer.digest, limit=formats.PAYLOAD_LIMIT)
        payload = payloads[layer.digest]
        found.append(formats.Signature(payload, signature, payload, key_id=layer.annotations.get(formats.KEY_ID_ANNOTATION, "")))
    return found


def fetch_bundles(registry: Registry, repository: str, digest: Digest) -> list[formats.Signature]:
    """The signatures in sigstore bundles that refer to `digest` (cosign 3's default). Unreadable bundles are left out."""
    found = []
    for referrer in registry.list_referrers(repository, digest)[:_LIMIT]:
        if referrer.artifact_type not in {"", media.SIGSTORE_BUNDLE}:
            continue
        try:
            data, kind, _ = registry.get_manifest(repository, referrer.digest)
            manifest = parse_manifest(data, kind)
            if not isinstance(manifest, Manifest) or [layer.media_type for layer in manifest.layers] != [media.SIGSTORE_BUNDLE]:
                continue
            bundle = formats.Bundle.parse(registry.get_blob(repository, manifest.layers[0].digest, limit=formats.BUNDLE_LIMIT))
        except PeerError:
            continue
        signed = bundle.signed_bytes()
        found += [formats.Signature(signed, signature, bundle.payload, is_bundle=True) for signature in bundle.signatures]
    return found
