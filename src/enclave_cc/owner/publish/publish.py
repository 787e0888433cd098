"""From an ordinary image to one that runs in an enclave: encrypt, register, push, sign, and check what is there."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from enclave_cc.crypto.signing_key import SigningKey
from enclave_cc.owner.publish import encrypt, marker, push, registration, sign
from enclave_cc.owner.publish.sources import SourceImage
from enclave_cc.record import record
from enclave_cc.transport.registry import Registry
from enclave_cc.wire.oci.digest import Digest
from enclave_cc.wire.oci.manifest import Manifest
from enclave_cc.wire.oci.reference import Reference
from enclave_cc.wire.rcar.uri import ResourcePath


@record
class Request:
    """What the owner wants: which layers encrypted (`all` or numbers), what a host may override (None: as it is).

    `marker`: whether the image gets a marker layer (`marker.py`).
    """

    target: Reference
    signing_key: SigningKey
    key_path: ResourcePath | None = None  # where the KEK lies, or shall lie; None: a fresh place
    layers: str = "all"
    allow: Sequence[str] | None = None
    replace_signer: bool = False
    marker: bool = True


@record
class Published:
    """What came of it; `manifest` is the one that the registry serves."""

    reference: Reference
    digest: Digest
    manifest: Manifest
    encrypted: tuple[int, ...]
    key_uri: str
    signer: str


def publish_image(
    image: SourceImage,
    request: Request,
    *,
    registry: Registry,
    store: registration.ResourceStore,
    lock_directory: Path,
    progress: Callable[[str], None],
) -> Published:
    """Publishes, in an order in which the tag never means an image that cannot run:

    1. check all that can be checked: layers, overrides, the signer, the registry;
    2. register the KEK in the KBS;
    3. encrypt the chosen layers (ciphertext only touches the disk);
    4. push blobs and manifest, by digest;
    5. read the manifest back and check that each chosen layer is encrypted and opens to what it was;
    6. sign the digest;
    7. make the KBS's policies ask for that signature and allow the overrides;
    8. tag it: until here the tag means what it meant before.

    Raises what these raise; what is left behind then is a key without an image, or an image without a tag.
    """
    registration.check_overrides(request.allow)  # 1
    encrypt.select_layers(request.layers, encrypt.count_layers(image))
    if request.marker:
        image = marker.add_marker(image)
    registration.check_signer(store, request.target, request.signing_key.public, replace=request.replace_signer)
    registry.find_manifest(request.target.repository, request.target.target)
    kek = registration.register_kek(store, request.key_path or registration.choose_key_path(request.target))  # 2
    progress(f"key {kek.uri}: in the KBS")
    with tempfile.TemporaryDirectory(prefix="enclave-cc-publish-") as staging:
        prepared = encrypt.encrypt_image(image, kek, layers=request.layers, staging=Path(staging), progress=progress)  # 3
        pinned = request.target.with_digest(prepared.digest)
        digest = push.push_image(registry, pinned, prepared, progress)  # 4
        manifest = push.read_back(registry, pinned, prepared)  # 5
        encrypt.check_encryption(image, prepared, manifest, kek)
    progress(f"read back {digest}: {len(prepared.encrypted)} of {len(manifest.layers)} layers encrypted, each opens")
    sign.sign_image(registry, request.target, digest, request.signing_key)  # 6
    with registration.lock_policies(lock_directory):  # 7
        registration.register_signer(store, request.target, request.signing_key.public, replace=request.replace_signer)
        registration.register_overrides(store, request.target, request.allow)
    push.tag_image(registry, request.target, prepared)  # 8
    return Published(request.target, digest, manifest, prepared.encrypted, kek.uri, request.signing_key.public.key_id)
