"""The options by which every image command reaches registries."""

from __future__ import annotations

import argparse
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from enclave_cc.errors import PeerError, UsageError
from enclave_cc.owner.publish.sources import Connect, SourceImage
from enclave_cc.transport.registry import Registry
from enclave_cc.wire.oci.auth import AuthFile
from enclave_cc.wire.oci.manifest import LINUX_AMD64, Platform
from enclave_cc.wire.oci.reference import Reference


def add_registry_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--insecure", action="store_true", help="speak plain HTTP with the registries of this command")
    parser.add_argument("--ca", type=Path, metavar="FILE", help="trust these CAs too (PEM)")
    parser.add_argument("--auth-file", type=Path, metavar="FILE", help="registry credentials, as docker and podman keep them")
    parser.add_argument("--deadline", type=_read_deadline, default=60.0, metavar="SECONDS", help="per request (default 60)")
    parser.add_argument("--json", action="store_true", help="print JSON")


def add_source_arguments(parser: argparse.ArgumentParser) -> None:
    source = "OCI layout DIR[:TAG], archive FILE, or a registry REFERENCE; oci:, oci-archive:, docker-archive:, docker:// decide"
    parser.add_argument("source", metavar="SRC", help=source)
    parser.add_argument("--platform", type=_read_platform, default=LINUX_AMD64, metavar="OS/ARCH", help="which of several")


def add_layer_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--layers", default="all", metavar="all|N,N", help="which layers to encrypt, counted from 0 (default all)")
    parser.add_argument(
        "--no-marker",
        action="store_true",
        help="add no marker layer: containerd may then take the image for the ordinary one, or for one of another repository",
    )


def make_connect(arguments: argparse.Namespace) -> Connect:
    """Clients by host, made once each, as the options say. Raises `UsageError`."""
    ca_pem = _read_text(arguments.ca) if arguments.ca is not None else None
    auth = _find_auth(arguments.auth_file)
    clients: dict[str, Registry] = {}
    lock = threading.Lock()

    def connect(host: str) -> Registry:
        with lock:
            if host not in clients:
                credentials = auth.find(Reference(host, "any")) if auth is not None else None
                clients[host] = Registry(
                    host, insecure=arguments.insecure, credentials=credentials, ca_pem=ca_pem, deadline=arguments.deadline
                )
            return clients[host]

    return connect


def make_progress(arguments: argparse.Namespace) -> Callable[[str], None]:
    """Lines on stderr about what was done; silent with --json."""
    if arguments.json:
        return lambda line: None
    return lambda line: print(line, file=sys.stderr)


def check_platform(image: SourceImage, wanted: Platform) -> None:
    """Says which platforms of a multi-platform source were left out. Raises `PeerError("unsupported-image")` for an image
    that is for another platform than was meant.
    """
    found = image.config.platform
    if (found.os, found.architecture) != (wanted.os, wanted.architecture):
        raise PeerError(
            "unsupported-image", f"the source is for {found}, not {wanted}", "Name the platform that is meant with --platform."
        )
    if image.platforms:
        left = ", ".join(image.platforms)
        print(f"note: only {wanted} is taken; the source also has {left}. Choose with --platform.", file=sys.stderr)


def _read_deadline(text: str) -> float:
    seconds = float(text)
    if not 0 < seconds <= 86400:
        raise argparse.ArgumentTypeError("not a number of seconds up to a day")
    return seconds


def _read_platform(text: str) -> Platform:
    try:
        return Platform.parse(text)
    except PeerError as error:
        raise argparse.ArgumentTypeError(error.what) from error


def _find_auth(given: Path | None) -> AuthFile | None:
    """`--auth-file`, else the first of $REGISTRY_AUTH_FILE, podman's and docker's files that exists."""
    if given is not None:
        return _read_auth(given)
    places = [
        Path(os.environ["REGISTRY_AUTH_FILE"]) if "REGISTRY_AUTH_FILE" in os.environ else None,
        Path(os.environ.get("XDG_RUNTIME_DIR", f"/run/user/{os.getuid()}")) / "containers/auth.json",
        Path(os.environ.get("DOCKER_CONFIG", Path.home() / ".docker")) / "config.json",
    ]
    for place in places:
        if place is not None and place.is_file():
            return _read_auth(place)
    return None


def _read_auth(path: Path) -> AuthFile:
    try:
        return AuthFile.parse(_read_text(path).encode())
    except PeerError as error:
        raise UsageError("bad-config", f"{path} is not an auth.json of docker or podman") from error


def _read_text(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError("not-found", f"{path} cannot be read", "Check the path.") from error
