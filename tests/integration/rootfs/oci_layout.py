"""OCI image layouts from tar layers made in a test, and what umoci unpacks of them."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any


class LayerBuilder:
    """One tar layer, member by member; every member has an mtime of its own so that none is right by chance."""

    def __init__(self, *, format: int = tarfile.PAX_FORMAT) -> None:
        self._buffer = io.BytesIO()
        self._tar = tarfile.open(fileobj=self._buffer, mode="w", format=format)  # noqa: SIM115 (closed by finish)
        self._clock = 1_600_000_000.0

    def add(self, path: str, kind: bytes = tarfile.REGTYPE, body: bytes = b"", **fields: Any) -> LayerBuilder:
        """`fields` are attributes of `tarfile.TarInfo`; xattrs={"user.a": "b"} becomes pax records."""
        info = tarfile.TarInfo(path)
        info.type = kind
        info.mode = 0o755 if kind == tarfile.DIRTYPE else 0o644
        self._clock += 1.125
        info.mtime = self._clock  # type: ignore[assignment]
        info.size = len(body)
        xattrs = fields.pop("xattrs", {})
        for name, value in fields.items():
            setattr(info, name, value)
        info.pax_headers = info.pax_headers | {f"SCHILY.xattr.{name}": value for name, value in xattrs.items()}
        self._tar.addfile(info, io.BytesIO(body))
        return self

    def directory(self, path: str, **fields: Any) -> LayerBuilder:
        return self.add(path, tarfile.DIRTYPE, **fields)

    def symlink(self, path: str, target: str, **fields: Any) -> LayerBuilder:
        return self.add(path, tarfile.SYMTYPE, linkname=target, **fields)

    def hardlink(self, path: str, target: str) -> LayerBuilder:
        return self.add(path, tarfile.LNKTYPE, linkname=target)

    def finish(self) -> bytes:
        self._tar.close()
        return self._buffer.getvalue()


def write_layout(directory: Path, layers: Sequence[bytes]) -> Path:
    """An OCI layout with one image, tagged `latest`, of these plain tar layers."""

    def add_blob(data: bytes, media_type: str) -> dict[str, Any]:
        digest = hashlib.sha256(data).hexdigest()
        (directory / "blobs" / "sha256" / digest).write_bytes(data)
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data)}

    (directory / "blobs" / "sha256").mkdir(parents=True)
    (directory / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": ["sha256:" + hashlib.sha256(layer).hexdigest() for layer in layers]},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": add_blob(json.dumps(config).encode(), "application/vnd.oci.image.config.v1+json"),
        "layers": [add_blob(layer, "application/vnd.oci.image.layer.v1.tar") for layer in layers],
    }
    descriptor = add_blob(json.dumps(manifest).encode(), "application/vnd.oci.image.manifest.v1+json")
    descriptor["annotations"] = {"org.opencontainers.image.ref.name": "latest"}
    (directory / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [descriptor]}))
    return directory


def unpack_with_umoci(layout: Path, bundle: Path) -> Path:
    """The rootfs that umoci makes; raises `subprocess.CalledProcessError` with its words if it refuses."""
    command = ["umoci", "unpack", "--image", f"{layout}:latest", str(bundle)]
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=240)
    return bundle / "rootfs"
