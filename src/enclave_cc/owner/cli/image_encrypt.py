"""Encrypt the layers of an image, into an OCI layout or a registry; neither signs it nor tells any policy of it."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from enclave_cc import console
from enclave_cc.crypto.secret import Secret
from enclave_cc.errors import UsageError
from enclave_cc.owner.cli import registry_options
from enclave_cc.owner.cli.image_push import parse_target
from enclave_cc.owner.kbs.client import AdminClient
from enclave_cc.owner.publish import encrypt, layout, marker, push, registration, sources
from enclave_cc.wire.oci.reference import Reference


def add_arguments(parser: argparse.ArgumentParser) -> None:
    registry_options.add_source_arguments(parser)
    parser.add_argument("destination", metavar="DST", help="oci:DIR[:TAG] (a layout) or HOST[:PORT]/REPOSITORY[:TAG]")
    parser.add_argument("--key-uri", default="auto", metavar="URI|auto", help="the key's place in the KBS (default: a fresh one)")
    parser.add_argument("--key-file", type=Path, metavar="FILE", help="the key, 32 bytes, for a KBS that is not reached from here")
    parser.add_argument("--kbs", metavar="DIR", help="the KBS directory (default $ENCLAVE_CC_KBS, ~/.config/enclave-cc/kbs)")
    registry_options.add_layer_arguments(parser)
    registry_options.add_registry_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    connect = registry_options.make_connect(arguments)
    progress = registry_options.make_progress(arguments)
    into_layout = arguments.destination.startswith("oci:")
    target = Reference("localhost", "image") if into_layout else parse_target(arguments.destination)
    image = sources.load_image(sources.open_source(arguments.source, connect), arguments.platform)
    registry_options.check_platform(image, arguments.platform)
    if not arguments.no_marker:
        image = marker.add_marker(image)
    kek = find_kek(arguments, target)
    with tempfile.TemporaryDirectory(prefix="enclave-cc-encrypt-") as staging:
        prepared = encrypt.encrypt_image(image, kek, layers=arguments.layers, staging=Path(staging), progress=progress)
        if into_layout:
            directory, _, tag = arguments.destination.removeprefix("oci:").partition(":")
            served = layout.write_layout(Path(directory), tag or "latest", prepared, arguments.platform)
        else:
            registry = connect(target.registry)
            push.push_image(registry, target, prepared, progress)
            served = push.read_back(registry, target, prepared)
        encrypt.check_encryption(image, prepared, served, kek)
    if arguments.json:
        console.print_value({"destination": arguments.destination, "digest": prepared.digest, "key": kek.uri})
    else:
        print(prepared.digest)
    return 0


def find_kek(arguments: argparse.Namespace, target: Reference) -> encrypt.Kek:
    """From --key-file, else from the KBS, where it is made if absent. Raises `UsageError` and what the KBS answers."""
    automatic = arguments.key_uri == "auto"
    path = registration.choose_key_path(target) if automatic else registration.parse_key_uri(arguments.key_uri)
    if arguments.key_file is None:
        return registration.register_kek(AdminClient.from_directory(arguments.kbs, deadline=arguments.deadline), path)
    if automatic:
        raise UsageError("usage", "--key-file needs --key-uri, under which the KBS will have the key")
    try:
        key = arguments.key_file.read_bytes()
    except OSError as error:
        raise UsageError("not-found", f"{arguments.key_file} cannot be read: {error.strerror}", "Check the path.") from error
    if len(key) != 32:
        raise UsageError(
            "usage", f"{arguments.key_file} holds {len(key)} bytes, not 32", "Make one: head -c 32 /dev/urandom > FILE"
        )
    return encrypt.Kek(path.uri, Secret(key))
