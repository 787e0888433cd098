"""Show an image: its layers, how they are encrypted and under which key, and its signatures (found, not verified)."""

from __future__ import annotations

import argparse
from typing import Any

from enclave_cc import console
from enclave_cc.errors import PeerError
from enclave_cc.owner.cli import registry_options
from enclave_cc.owner.publish import sources
from enclave_cc.transport import signature_store
from enclave_cc.wire.oci import encryption, manifest
from enclave_cc.wire.oci import media_type as media
from enclave_cc.wire.oci.digest import Digest


def add_arguments(parser: argparse.ArgumentParser) -> None:
    registry_options.add_source_arguments(parser)
    registry_options.add_registry_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    connect = registry_options.make_connect(arguments)
    source = sources.open_source(arguments.source, connect)
    root = Digest.of(source.root()[0])
    image = sources.load_image(source, arguments.platform)
    digest = Digest.of(image.manifest_bytes)
    shown: dict[str, Any] = {
        "source": arguments.source,
        "digest": root,
        "manifest_digest": digest,
        "media_type": image.manifest.media_type,
        "platform": str(image.config.platform),
        "other_platforms": list(image.platforms),
        "config": {
            "entrypoint": list(image.config.entrypoint),
            "cmd": list(image.config.cmd),
            "env": list(image.config.env),
            "user": image.config.user,
            "working_dir": image.config.working_dir,
            "volumes": list(image.config.volumes),
        },
        "layers": [describe_layer(*pair) for pair in zip(image.manifest.layers, image.config.diff_ids, strict=True)],
    }
    if isinstance(source, sources.RegistrySource):
        registry, repository = connect(source.reference.registry), source.reference.repository
        shown["signatures"] = [
            {"over": over, "kind": "bundle" if found.is_bundle else "cosign", "key_id": found.key_id or None}
            for over in dict.fromkeys((root, digest))
            for fetch in (signature_store.fetch_tagged, signature_store.fetch_bundles)
            for found in fetch(registry, repository, over)
        ]
    if arguments.json:
        console.print_value(shown)
        return 0
    print(f"digest      {shown['digest']}")
    print(f"platform    {shown['platform']}")
    for name, value in shown["config"].items():
        if value:
            print(f"{name:<11} {' '.join(value) if isinstance(value, list) else value}")
    if "signatures" in shown:
        print(f"signatures  {', '.join(s['key_id'] or s['kind'] for s in shown['signatures']) or 'none'}")
    print()
    console.print_rows(shown["layers"], ("digest", "size", "compression", "encrypted", "keys"), as_json=False)
    return 0


def describe_layer(layer: manifest.Descriptor, diff_id: Digest) -> dict[str, Any]:
    """One layer, for people and scripts."""
    kind = media.LayerType.parse(layer.media_type)
    keys: list[str] = []
    if kind.encrypted:
        try:
            keys = [packet.kid for packet in encryption.LayerEncryption.parse(layer.annotations).packets]
        except PeerError as error:
            keys = [error.what]
    return {
        "digest": layer.digest,
        "diff_id": diff_id,
        "size": layer.size,
        "media_type": layer.media_type,
        "compression": kind.compression or "none",
        "encrypted": kind.encrypted,
        "keys": keys,
    }
