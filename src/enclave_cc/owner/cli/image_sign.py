"""Sign an image in a registry, as cosign does with a key."""

from __future__ import annotations

import argparse
from pathlib import Path

from enclave_cc import console
from enclave_cc.owner.cli import registry_options
from enclave_cc.owner.publish import sign
from enclave_cc.wire.oci.reference import Reference


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("reference", metavar="REF", help="the image: HOST[:PORT]/REPOSITORY[:TAG][@DIGEST]")
    parser.add_argument(
        "--key", type=Path, required=True, metavar="FILE", help="private key: PEM, or cosign's (password: $COSIGN_PASSWORD)"
    )
    parser.add_argument("--generate", action="store_true", help="make the key first; its public half goes into FILE's .pub")
    registry_options.add_registry_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    image = Reference.parse(arguments.reference.removeprefix("docker://"))
    registry = registry_options.make_connect(arguments)(image.registry)
    digest = registry.get_manifest(image.repository, image.target)[2]
    key = sign.make_key(arguments.key) if arguments.generate else sign.read_key(arguments.key)
    sign.sign_image(registry, image, digest, key)
    if arguments.json:
        console.print_value({"reference": str(image), "digest": digest, "signer": key.public.key_id})
    else:
        print(f"{image.name}@{digest}")
    return 0
