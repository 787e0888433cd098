"""Build the agent or the app bundle and print its reference values."""

from __future__ import annotations

import argparse
from pathlib import Path

from enclave_cc import console
from enclave_cc.owner.publish.sign import read_key
from enclave_cc.owner.reference import bundle, bundle_provenance


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("role", choices=sorted(bundle.PRODUCT_IDS), help="which enclave; build the app first")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where to put it; a bundle there is replaced")
    parser.add_argument("--libos", default="simulated", choices=["simulated"], help="what carries the enclave")
    parser.add_argument("--app", type=Path, metavar="DIR", help="agent only: the app bundle that it accepts, by MRENCLAVE")
    parser.add_argument("--key", type=Path, metavar="FILE", help="RSA-3072 signing key (PEM), made when absent")
    parser.add_argument("--debug", action="store_true", help="allow debug enclaves; a KBS refuses them by default")
    parser.add_argument("--isv-svn", type=int, default=1, metavar="N", help="security version of the bundle")
    parser.add_argument("--payload", type=Path, metavar="DIR", help="measured inputs (default: those of the source tree)")
    parser.add_argument(
        "--builder", default=bundle_provenance.DEFAULT_BUILDER, metavar="URI", help="who builds, for the provenance"
    )
    parser.add_argument(
        "--sign", type=Path, metavar="FILE", help="sign the bundle's statement with this key: PEM, or cosign's ($COSIGN_PASSWORD)"
    )
    parser.add_argument("--json", action="store_true", help="errors as JSON too; reference values always are")


def run(arguments: argparse.Namespace) -> int:
    inputs = bundle.BundleInputs(
        role=arguments.role,
        key=arguments.key or bundle.default_key(),
        payload=arguments.payload or bundle.default_payload(),
        libos=arguments.libos,
        app=arguments.app,
        debug=arguments.debug,
        isv_svn=arguments.isv_svn,
        builder=arguments.builder,
    )
    key = None if arguments.sign is None else read_key(arguments.sign)  # before the build: a missing key is known at once
    reference = bundle.build_bundle(inputs, arguments.out)
    if key is not None:
        bundle_provenance.sign_bundle(arguments.out, key)
    console.print_value(reference)
    return 0
