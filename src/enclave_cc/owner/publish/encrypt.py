"""Makes an image of encrypted layers out of an ordinary one, as OCI documents and staged blobs.

Each layer gets a key and a nonce of its own, wrapped under the image's KEK; compression comes before encryption.
What is staged on disk is ciphertext only.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from enclave_cc.crypto.layer import LayerCipher, LayerEncrypter
from enclave_cc.crypto.secret import Secret
from enclave_cc.errors import PeerError, UsageError
from enclave_cc.owner.publish import compression, files
from enclave_cc.owner.publish.sources import SourceImage
from enclave_cc.record import record
from enclave_cc.wire.oci import media_type as media
from enclave_cc.wire.oci.digest import Digest
from enclave_cc.wire.oci.encryption import KeyPacket, LayerEncryption, LayerKey, PrivateOptions, PublicOptions
from enclave_cc.wire.oci.manifest import Descriptor, Manifest

_WORKERS = 3
Opener = Callable[[], Iterable[bytes]]
Progress = Callable[[str], None]


@record
class Kek:
    """The key encryption key of an image: 32 bytes, and the `kbs://` URI under which the KBS holds it."""

    uri: str
    key: Secret


@record
class PreparedImage:
    """An image ready to be written to a registry or a layout: its documents, and how to read each blob."""

    manifest: Manifest
    manifest_bytes: bytes
    config_bytes: bytes
    blobs: Mapping[Digest, Opener]
    encrypted: tuple[int, ...]  # which layers were encrypted, counted from the lowest

    @property
    def digest(self) -> Digest:
        return Digest.of(self.manifest_bytes)


def copy_image(image: SourceImage) -> PreparedImage:
    """The image as it is, byte for byte."""
    blobs = {layer.digest: _reader(image, layer) for layer in image.manifest.layers}
    return PreparedImage(image.manifest, image.manifest_bytes, image.config_bytes, blobs, ())


def count_layers(image: SourceImage) -> int:
    """Layers that the owner made."""
    return len(image.manifest.layers) - image.marked


def select_layers(text: str, count: int) -> tuple[int, ...]:
    """`all`, or numbers from 0 (the lowest) or from -1 (the topmost), separated by commas. Raises `UsageError`."""
    if text == "all":
        return tuple(range(count))
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError as error:
        raise UsageError("usage", f"--layers {text!r} is neither `all` nor numbers") from error
    if not all(-count <= number < count for number in numbers):
        raise UsageError("usage", f"--layers {text}: the image has the layers 0 to {count - 1}")
    return tuple(sorted({number % count for number in numbers}))


def encrypt_image(image: SourceImage, kek: Kek, *, layers: str, staging: Path, progress: Progress) -> PreparedImage:
    """Encrypts the chosen layers under `kek`; the others, and the config, stay as they are. A marker is not counted, and
    always encrypted.

    Docker media types become OCI ones. Raises `UsageError("not-encrypted")` when there is no layer to encrypt or one
    is encrypted already, and what reading the source raises.
    """
    asked = select_layers(layers, count_layers(image))
    if not asked:
        raise UsageError("not-encrypted", "the image has no layer to encrypt")
    if image.marked:
        asked = (0, *(number + 1 for number in asked))
    kinds = [media.LayerType.parse(layer.media_type) for layer in image.manifest.layers]
    for number in asked:
        if kinds[number].encrypted:
            raise UsageError(
                "not-encrypted", f"layer {number - image.marked} is encrypted already", "Push it with `enclave-cc image push`."
            )
    with ThreadPoolExecutor(_WORKERS) as pool:
        futures = {}
        for number in asked:
            futures[number] = pool.submit(_encrypt_layer, image, number, kek, staging, progress)
        encrypted = {number: future.result() for number, future in futures.items()}
    blobs: dict[Digest, Opener] = {}
    descriptors = []
    for number, (layer, kind) in enumerate(zip(image.manifest.layers, kinds, strict=True)):
        if number in encrypted:
            descriptor, path = encrypted[number]
            blobs[descriptor.digest] = _file_reader(path)
        else:
            descriptor = Descriptor(str(kind), layer.digest, layer.size, layer.annotations)
            blobs[descriptor.digest] = _reader(image, layer)
        descriptors.append(descriptor)
    config = Descriptor(media.OCI_CONFIG, Digest.of(image.config_bytes), len(image.config_bytes))
    manifest = Manifest(media.OCI_MANIFEST, config, tuple(descriptors), image.manifest.annotations)
    return PreparedImage(manifest, manifest.encode(), image.config_bytes, blobs, asked)


def _encrypt_layer(image: SourceImage, number: int, kek: Kek, staging: Path, progress: Progress) -> tuple[Descriptor, Path]:
    layer = image.manifest.layers[number]
    kind, stream = compression.detect(image.open_layer(layer))
    compressed = None  # its digest, where that is not the source's own
    if not kind:
        kind, stream, compressed = "gzip", compression.compress_gzip(stream), hashlib.sha256()
    encrypter = LayerEncrypter()
    digest, size = hashlib.sha256(), 0
    path = staging / f"layer-{number}"
    with path.open("wb") as file:
        for chunk in stream:
            if compressed is not None:
                compressed.update(chunk)
            ciphertext = encrypter.update(chunk)
            digest.update(ciphertext)
            size += len(ciphertext)
            file.write(ciphertext)
    public = PublicOptions(encrypter.finish())
    plain = f"sha256:{compressed.hexdigest()}" if compressed is not None else layer.digest
    private = PrivateOptions(encrypter.symkey, encrypter.nonce, plain)
    annotations = LayerEncryption(public, (KeyPacket.seal(kek.uri, private, kek.key),)).to_annotations()
    descriptor = Descriptor(
        media_type=str(media.LayerType(kind, encrypted=True)),
        digest=Digest.parse(f"sha256:{digest.hexdigest()}"),
        size=size,
        annotations={**layer.annotations, **annotations},
    )
    name = f"layer {number - image.marked}" if number >= image.marked else "marker"
    progress(f"{name}: encrypted {size} bytes ({kind})")
    return descriptor, path


def check_encryption(image: SourceImage, prepared: PreparedImage, served: Manifest, kek: Kek) -> None:
    """That what a registry or layout now serves is really encrypted, and really opens to the image.

    `served` is its manifest, read back. For each layer that was to be encrypted:

    1. its media type says encrypted;
    2. its digest is that of the bytes staged here, and not that of the source's layer;
    3. its annotations, and nothing else but the KEK, give a key that its HMAC accepts;
    4. decrypted and decompressed it has the diff id that the image's config gives.

    Raises `PeerError`: "not-encrypted", "digest-mismatch", "layer-broken".
    """
    if not prepared.encrypted or len(served.layers) != len(prepared.manifest.layers):
        raise PeerError("not-encrypted", "the published image does not have the layers that were encrypted")
    with ThreadPoolExecutor(_WORKERS) as pool:
        for _ in pool.map(lambda number: _check_layer(image, prepared, served, kek, number), prepared.encrypted):
            pass


def _check_layer(image: SourceImage, prepared: PreparedImage, served: Manifest, kek: Kek, number: int) -> None:
    layer = served.layers[number]
    if not media.LayerType.parse(layer.media_type).encrypted:  # 1
        raise PeerError("not-encrypted", f"layer {number} was published as {layer.media_type}")
    if layer.digest in {source.digest for source in image.manifest.layers}:  # 2
        raise PeerError("not-encrypted", f"layer {number} was published with the plain layer's digest")
    if layer.digest not in prepared.blobs:  # 2
        raise PeerError("digest-mismatch", f"layer {number} was published as {layer.digest}, which was not made here")
    encryption = LayerEncryption.parse(layer.annotations)
    key = LayerKey.join(encryption.public, encryption.packets[0].open(kek.key))  # 3
    cipher = LayerCipher(key.symkey, key.nonce, key.hmac)
    digest, diff_id = hashlib.sha256(), hashlib.sha256()

    def decrypt() -> Iterator[bytes]:
        for chunk in prepared.blobs[layer.digest]():
            digest.update(chunk)
            yield cipher.update(chunk)

    for chunk in compression.decompress(decrypt()):
        diff_id.update(chunk)
    if digest.hexdigest() != layer.digest.hex:  # 2
        raise PeerError("digest-mismatch", f"layer {number} changed on its way to the disk")
    cipher.verify()  # 3
    if diff_id.hexdigest() != image.config.diff_ids[number].hex:  # 4
        raise PeerError(
            "layer-broken", f"layer {number} opens to another diff id than the image's config gives", "The source image is broken."
        )


def _reader(image: SourceImage, layer: Descriptor) -> Opener:
    return lambda: image.open_layer(layer)


def _file_reader(path: Path) -> Opener:
    def read() -> Iterator[bytes]:
        with path.open("rb") as file:
            while chunk := file.read(files.CHUNK):
                yield chunk

    return read
