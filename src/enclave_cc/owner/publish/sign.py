"""Signs an image as cosign does with a key: a simple-signing payload under the tag `sha256-<hex>.sig`.

cosign specs/SIGNATURE_SPEC.md. `cosign verify --key` and containers/image (`sigstoreSigned`) read what is written here.
"""

from __future__ import annotations

import base64
import os
from pathlib import Path

from enclave_cc.crypto.secret import Secret
from enclave_cc.crypto.signature import PublicKey
from enclave_cc.crypto.signing_key import SigningKey
from enclave_cc.errors import EnvironmentFault, PeerError, UsageError
from enclave_cc.transport.connections import Body
from enclave_cc.transport.registry import Registry
from enclave_cc.wire.oci import media_type as media
from enclave_cc.wire.oci import signature as formats
from enclave_cc.wire.oci.digest import Digest
from enclave_cc.wire.oci.document import encode_json
from enclave_cc.wire.oci.manifest import Descriptor, Manifest, parse_manifest
from enclave_cc.wire.oci.reference import Reference


def sign_image(registry: Registry, image: Reference, digest: Digest, key: SigningKey) -> Digest:
    """Signs `digest` as an image of `image`'s repository, beside signatures that are there; returns the tag's digest.

    An older signature of the same key over the same payload is replaced. Raises what registries raise.
    """
    payload = formats.SimpleSigning(image.name, digest).encode()
    signature = key.sign(payload)
    tag = formats.signature_tag(digest)
    annotations = {
        formats.SIGNATURE_ANNOTATION: base64.b64encode(signature).decode(),
        formats.KEY_ID_ANNOTATION: key.public.key_id,
    }
    added = Descriptor(media.SIMPLE_SIGNING, Digest.of(payload), len(payload), annotations)
    kept = [layer for layer in _present(registry, image.repository, tag) if not _replaces(added, layer, payload, key.public)]
    layers = (*kept, added)
    config = encode_json(
        {
            "architecture": "",
            "config": {},
            "created": "0001-01-01T00:00:00Z",
            "history": [{"created": "0001-01-01T00:00:00Z"} for _ in layers],
            "os": "",
            "rootfs": {"type": "layers", "diff_ids": [str(layer.digest) for layer in layers]},
        }
    )
    manifest = Manifest(media.OCI_MANIFEST, Descriptor(media.OCI_CONFIG, Digest.of(config), len(config)), layers)
    registry.push_blob(image.repository, added.digest, Body.of(payload))
    registry.push_blob(image.repository, manifest.config.digest, Body.of(config))
    return registry.push_manifest(image.repository, tag, manifest.encode(), media.OCI_MANIFEST)


def _present(registry: Registry, repository: str, tag: str) -> tuple[Descriptor, ...]:
    try:
        data, kind, _ = registry.get_manifest(repository, tag)
    except PeerError as error:
        if error.code == "image-not-found":
            return ()
        raise
    found = parse_manifest(data, kind)
    return found.layers if isinstance(found, Manifest) else ()


def _replaces(added: Descriptor, present: Descriptor, payload: bytes, key: PublicKey) -> bool:
    if present.digest != added.digest:
        return False
    try:
        key.verify(base64.b64decode(present.annotations.get(formats.SIGNATURE_ANNOTATION, "")), payload)
    except (PeerError, ValueError):
        return False
    return True


def read_key(path: Path) -> SigningKey:
    """A signing key from a PEM file; the password of a key of cosign's is in $COSIGN_PASSWORD. Raises `UsageError`."""
    password = os.environ.get("COSIGN_PASSWORD")
    try:
        return SigningKey.from_pem(Secret(path.read_bytes()), Secret(password.encode()) if password is not None else None)
    except OSError as error:
        raise UsageError("not-found", f"{path} cannot be read: {error.strerror}", "Give a key in PEM.") from error


def make_key(path: Path) -> SigningKey:
    """A new signing key in a file of mode 0600, its public half beside it in `.pub`. Never overwrites.

    Raises `UsageError("already-exists")`, `EnvironmentFault`.
    """
    key = SigningKey.generate()
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(key.to_pem().reveal())
        path.with_suffix(".pub").write_bytes(key.public.to_pem())
    except FileExistsError as error:
        raise UsageError("already-exists", f"{path} exists") from error
    except OSError as error:
        raise EnvironmentFault("environment", f"{path} cannot be written: {error.strerror}") from error
    return key


def read_or_make_key(path: Path) -> SigningKey:
    """The key at `path`; made when there is none yet, by whoever comes first."""
    if not path.exists():
        try:
            return make_key(path)
        except UsageError as error:
            if error.code != "already-exists":
                raise
    return read_key(path)
