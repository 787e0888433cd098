"""Push an image to a registry as it is, without encrypting or signing it."""

from __future__ import annotations

import argparse

from enclave_cc import console
from enclave_cc.errors import UsageError
from enclave_cc.owner.cli import registry_options
from enclave_cc.owner.publish import encrypt, push, sources
from enclave_cc.wire.oci.reference import Reference


def add_arguments(parser: argparse.ArgumentParser) -> None:
    registry_options.add_source_arguments(parser)
    parser.add_argument("reference", metavar="REF", help="where to push it: HOST[:PORT]/REPOSITORY[:TAG]")
    registry_options.add_registry_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    target = parse_target(arguments.reference)
    connect = registry_options.make_connect(arguments)
    image = sources.load_image(sources.open_source(arguments.source, connect), arguments.platform)
    registry_options.check_platform(image, arguments.platform)
    prepared = encrypt.copy_image(image)
    registry = connect(target.registry)
    digest = push.push_image(registry, target, prepared, registry_options.make_progress(arguments))
    push.read_back(registry, target, prepared)
    if arguments.json:
        console.print_value({"reference": str(target), "digest": digest})
    else:
        print(f"{target.name}@{digest}")
    return 0


def parse_target(text: str) -> Reference:
    """A reference to push to: by tag, `latest` if none is given. Raises `UsageError`."""
    target = Reference.parse(text.removeprefix("docker://"))
    if target.digest is not None:
        raise UsageError("bad-reference", f"{target} names a digest, which pushing decides", "Write HOST[:PORT]/REPOSITORY[:TAG].")
    return target.with_default_tag()
