"""Encrypt, push and sign an image, and register its key, its signer and its allowances in the KBS.

Exits with 0 only if every layer asked for is encrypted in the registry, and opens again.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from enclave_cc import console
from enclave_cc.owner.cli import registry_options
from enclave_cc.owner.cli.image_push import parse_target
from enclave_cc.owner.kbs.client import AdminClient
from enclave_cc.owner.kbs.directory import KbsDirectory
from enclave_cc.owner.publish import publish, registration, sign, sources
from enclave_cc.wire.launch.policy import WORDS
from enclave_cc.wire.oci import media_type as media


def add_arguments(parser: argparse.ArgumentParser) -> None:
    registry_options.add_source_arguments(parser)
    parser.add_argument("destination", metavar="DST", help="where to push it: HOST[:PORT]/REPOSITORY[:TAG]")
    parser.add_argument("--kbs", metavar="DIR", help="the KBS directory (default $ENCLAVE_CC_KBS, ~/.config/enclave-cc/kbs)")
    parser.add_argument("--key", metavar="URI", help="where the image's key lies in the KBS; made if absent (default: a fresh one)")
    parser.add_argument("--sign-key", type=Path, metavar="FILE", help="signing key, PEM (default: DIR/signing.key, made if absent)")
    parser.add_argument("--replace-signer", action="store_true", help="let the policy ask for this signing key in place of another")
    registry_options.add_layer_arguments(parser)
    parser.add_argument(
        "--allow",
        metavar="WORDS",
        help=f"what a host may override: all, none, or some of {','.join(sorted(WORDS))}, env:NAME, volumes:/PATH "
        "(default: nothing, or what was said before)",
    )
    registry_options.add_registry_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    target = parse_target(arguments.destination)
    key_path = registration.parse_key_uri(arguments.key) if arguments.key is not None else None
    allow = parse_allow(arguments.allow)
    directory = KbsDirectory.locate(arguments.kbs).path
    store = AdminClient.from_directory(arguments.kbs, deadline=arguments.deadline)
    key = sign.read_key(arguments.sign_key) if arguments.sign_key else sign.read_or_make_key(directory / "signing.key")
    connect = registry_options.make_connect(arguments)
    image = sources.load_image(sources.open_source(arguments.source, connect), arguments.platform)
    registry_options.check_platform(image, arguments.platform)
    request = publish.Request(
        target, key, key_path, arguments.layers, allow, arguments.replace_signer, marker=not arguments.no_marker
    )
    published = publish.publish_image(
        image,
        request,
        registry=connect(target.registry),
        store=store,
        lock_directory=directory,
        progress=registry_options.make_progress(arguments),
    )
    if arguments.json:
        console.print_value(describe(published))
    else:
        print(f"{published.reference.name}@{published.digest}")
    return 0


def parse_allow(text: str | None) -> tuple[str, ...] | None:
    """The words of --allow; None when it is not given, nothing for `none`. Raises `UsageError`."""
    if text is None:
        return None
    words = tuple(word.strip() for word in text.split(",") if word.strip() not in {"", "none"})
    registration.check_overrides(words)
    return words


def describe(published: publish.Published) -> dict[str, object]:
    """What was published, for --json."""
    return {
        "reference": str(published.reference),
        "digest": published.digest,
        "key": published.key_uri,
        "signer": published.signer,
        "layers": [
            {
                "digest": layer.digest,
                "size": layer.size,
                "media_type": layer.media_type,
                "encrypted": media.LayerType.parse(layer.media_type).encrypted,
            }
            for layer in published.manifest.layers
        ],
    }
