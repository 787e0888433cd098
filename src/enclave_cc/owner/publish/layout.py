"""Writes a prepared image into an OCI layout directory (image-spec, image-layout.md)."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

from enclave_cc.errors import EnvironmentFault, PeerError, UsageError
from enclave_cc.owner.publish.encrypt import PreparedImage
from enclave_cc.owner.publish.sources import REF_NAME
from enclave_cc.wire.oci import media_type as media
from enclave_cc.wire.oci.document import encode_json
from enclave_cc.wire.oci.manifest import LINUX_AMD64, Descriptor, Index, Manifest, Platform, parse_manifest


def write_layout(directory: Path, tag: str, image: PreparedImage, platform: Platform = LINUX_AMD64) -> Manifest:
    """Adds the image under `tag`, in place of another one of that tag; returns the manifest as read back from disk.

    Raises `UsageError` when `directory` holds something else, `EnvironmentFault` when it cannot be written.
    """
    try:
        blobs = directory / "blobs/sha256"
        blobs.mkdir(parents=True, exist_ok=True)
        index = _read_index(directory)
        for layer in image.manifest.layers:
            _write(blobs / layer.digest.hex, image.blobs[layer.digest]())
        _write(blobs / image.manifest.config.digest.hex, (image.config_bytes,))
        _write(blobs / image.digest.hex, (image.manifest_bytes,))
        annotations = {REF_NAME: tag}
        added = Descriptor(image.manifest.media_type, image.digest, len(image.manifest_bytes), annotations, platform)
        kept = tuple(d for d in index.manifests if d.annotations.get(REF_NAME) != tag)
        _write(directory / "oci-layout", (encode_json({"imageLayoutVersion": "1.0.0"}),))
        _write(directory / "index.json", (Index(media.OCI_INDEX, (*kept, added)).encode(),))
        data = (blobs / image.digest.hex).read_bytes()
    except OSError as error:
        code = "disk-full" if error.errno == 28 else "environment"
        raise EnvironmentFault(code, f"{directory} cannot be written: {error.strerror}") from error
    manifest = parse_manifest(image.digest.check(data, "the manifest"), image.manifest.media_type)
    if not isinstance(manifest, Manifest):
        raise PeerError("malformed", "an index in place of a manifest")
    return manifest


def _read_index(directory: Path) -> Index:
    path = directory / "index.json"
    if not path.exists():
        if any(entry.name not in {"blobs", "oci-layout"} for entry in directory.iterdir()):
            raise UsageError("already-exists", f"{directory} is there and is not an OCI layout")
        return Index(media.OCI_INDEX, ())
    index = parse_manifest(path.read_bytes(), media.OCI_INDEX)
    if not isinstance(index, Index):
        raise UsageError("already-exists", f"{path} is not an index")
    return index


def _write(path: Path, chunks: Iterable[bytes]) -> None:
    """Whole or not at all."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=".writing-")
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(descriptor, 0o644)
            for chunk in chunks:
                file.write(chunk)
        Path(temporary).rename(path)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(temporary).unlink()
        raise
