"""Encrypting an image, writing it to a layout, and the check that refuses to call it done."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from enclave_cc.crypto.secret import Secret
from enclave_cc.errors import EnvironmentFault, PeerError, UsageError
from enclave_cc.owner.publish import encrypt, files, layout, sources
from enclave_cc.wire.oci import media_type as media
from enclave_cc.wire.oci.digest import Digest
from enclave_cc.wire.oci.encryption import LayerEncryption
from enclave_cc.wire.oci.manifest import LINUX_AMD64, Descriptor, Index, Manifest, Platform
from enclave_cc.wire.oci.reference import Reference

KEK = encrypt.Kek("kbs:///default/image-key/x", Secret(b"K" * 32))
SECRET = b"the owner's data " * 2000


def tar(name: str, content: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        member = tarfile.TarInfo(name)
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


PLAIN = [tar("a", SECRET), tar("b", b"x")]


def make_layout(directory: Path, blobs: list[bytes] | None = None, *, docker: bool = False, tag: str = "t") -> Path:
    """A layout of one image; layer 0 gzip, layer 1 as it is, unless given."""
    blobs = blobs if blobs is not None else [gzip.compress(PLAIN[0]), PLAIN[1]]
    rootfs = {"type": "layers", "diff_ids": [Digest.of(plain) for plain in PLAIN[: len(blobs)]]}
    config = json.dumps({"os": "linux", "architecture": "amd64", "rootfs": rootfs}).encode()
    kinds = [media.DOCKER_LAYER_GZIP if docker else media.OCI_LAYER + "+gzip", media.DOCKER_LAYER if docker else media.OCI_LAYER]
    layers = tuple(Descriptor(kind, Digest.of(blob), len(blob), {"k": "v"}) for kind, blob in zip(kinds, blobs, strict=False))
    config_kind, kind = (media.DOCKER_CONFIG, media.DOCKER_MANIFEST) if docker else (media.OCI_CONFIG, media.OCI_MANIFEST)
    manifest = Manifest(kind, Descriptor(config_kind, Digest.of(config), len(config)), layers).encode()
    (directory / "blobs/sha256").mkdir(parents=True)
    for blob in (*blobs, config, manifest):
        (directory / "blobs/sha256" / hashlib.sha256(blob).hexdigest()).write_bytes(blob)
    entry = Descriptor(kind, Digest.of(manifest), len(manifest), {sources.REF_NAME: tag})
    (directory / "index.json").write_bytes(Index(media.OCI_INDEX, (entry,)).encode())
    (directory / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    return directory


def no_registry(host: str) -> sources.Registry:
    raise AssertionError(host)


def load(text: str | Path) -> sources.SourceImage:
    return sources.load_image(sources.open_source(str(text), no_registry), LINUX_AMD64)


def silent(line: str) -> None:
    pass


@pytest.fixture
def image(tmp_path: Path) -> sources.SourceImage:
    return load(make_layout(tmp_path / "layout"))


@pytest.fixture
def prepare(tmp_path: Path) -> Callable[..., encrypt.PreparedImage]:
    def run(image: sources.SourceImage, layers: str = "all") -> encrypt.PreparedImage:
        staging = tmp_path / f"staging-{layers}"
        staging.mkdir()
        return encrypt.encrypt_image(image, KEK, layers=layers, staging=staging, progress=silent)

    return run


Prepare = Callable[..., encrypt.PreparedImage]


def test_every_layer_becomes_ciphertext_that_opens(image: sources.SourceImage, prepare: Prepare, tmp_path: Path) -> None:
    prepared = prepare(image)
    assert [layer.media_type for layer in prepared.manifest.layers] == [media.OCI_LAYER + "+gzip+encrypted"] * 2
    assert all(layer.annotations["k"] == "v" for layer in prepared.manifest.layers)
    served = layout.write_layout(tmp_path / "out", "x", prepared)
    encrypt.check_encryption(image, prepared, served, KEK)
    written = b"".join(path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert SECRET[:100] not in written
    assert gzip.compress(PLAIN[0])[100:200] not in written


def test_no_two_layers_share_a_key_or_a_nonce(tmp_path: Path, prepare: Prepare) -> None:
    image = load(make_layout(tmp_path / "same", [PLAIN[0]]))
    opened = []
    for number in range(4):
        staging = tmp_path / f"s{number}"
        staging.mkdir()
        prepared = encrypt.encrypt_image(image, KEK, layers="all", staging=staging, progress=silent)
        opened.append(LayerEncryption.parse(prepared.manifest.layers[0].annotations).packets[0].open(KEK.key))
    assert len({private.symkey.reveal() for private in opened}) == 4
    assert len({private.nonce for private in opened}) == 4


def test_chosen_layers_only(image: sources.SourceImage, prepare: Prepare) -> None:
    prepared = prepare(image, "-1")
    first, second = prepared.manifest.layers
    assert prepared.encrypted == (1,)
    assert (first.digest, first.media_type) == (image.manifest.layers[0].digest, media.OCI_LAYER + "+gzip")
    assert second.media_type.endswith("+encrypted")
    encrypt.check_encryption(image, prepared, prepared.manifest, KEK)


@pytest.mark.parametrize(("text", "numbers"), [("all", (0, 1, 2)), ("0", (0,)), ("2,0,0", (0, 2)), ("-1", (2,)), ("-3,1", (0, 1))])
def test_layers_are_named_by_number(text: str, numbers: tuple[int, ...]) -> None:
    assert encrypt.select_layers(text, 3) == numbers


@pytest.mark.parametrize("text", ["", "x", "3", "-4", "0,", "1.5"])
def test_other_numbers_are_refused(text: str) -> None:
    with pytest.raises(UsageError):
        encrypt.select_layers(text, 3)


def test_docker_types_become_oci_types(tmp_path: Path, prepare: Prepare) -> None:
    image = load(make_layout(tmp_path / "docker", docker=True))
    prepared = prepare(image, "0")
    assert prepared.manifest.media_type == media.OCI_MANIFEST
    assert prepared.manifest.config.media_type == media.OCI_CONFIG
    assert [layer.media_type for layer in prepared.manifest.layers] == [media.OCI_LAYER + "+gzip+encrypted", media.OCI_LAYER]
    encrypt.check_encryption(image, prepared, prepared.manifest, KEK)


def test_copying_changes_no_byte(image: sources.SourceImage, tmp_path: Path) -> None:
    copied = encrypt.copy_image(image)
    assert copied.digest == Digest.of(image.manifest_bytes)
    layout.write_layout(tmp_path / "copy", "t", copied)
    assert load(tmp_path / "copy").manifest_bytes == image.manifest_bytes


def test_what_is_encrypted_already_is_not_encrypted_again(image: sources.SourceImage, prepare: Prepare, tmp_path: Path) -> None:
    layout.write_layout(tmp_path / "out", "t", prepare(image))
    with pytest.raises(UsageError, match="already") as caught:
        prepare(load(tmp_path / "out"), "0")
    assert caught.value.code == "not-encrypted"


def test_an_image_without_layers_cannot_be_encrypted(tmp_path: Path, prepare: Prepare) -> None:
    with pytest.raises(UsageError) as caught:
        prepare(load(make_layout(tmp_path / "empty", [])))
    assert caught.value.code == "not-encrypted"


# the check


def change(manifest: Manifest, number: int, **changes: object) -> Manifest:
    layers = list(manifest.layers)
    layers[number] = dataclasses.replace(layers[number], **changes)  # type: ignore[arg-type]
    return dataclasses.replace(manifest, layers=tuple(layers))


def test_the_check_finds_each_way_of_not_being_encrypted(image: sources.SourceImage, prepare: Prepare, tmp_path: Path) -> None:
    prepared = prepare(image)
    other = encrypt.encrypt_image(image, KEK, layers="all", staging=(tmp_path / "layout"), progress=silent)
    good = prepared.manifest
    plain = image.manifest.layers[0]
    cases = [
        ("not-encrypted", change(good, 0, media_type=media.OCI_LAYER + "+gzip")),
        ("not-encrypted", change(good, 0, digest=plain.digest)),
        ("not-encrypted", dataclasses.replace(good, layers=good.layers[:1])),
        ("digest-mismatch", change(good, 0, digest=other.manifest.layers[0].digest)),
        ("layer-broken", change(good, 0, annotations=good.layers[1].annotations)),
        ("layer-broken", change(good, 0, digest=good.layers[1].digest)),
        ("malformed", change(good, 0, annotations={})),
    ]
    for code, served in cases:
        with pytest.raises(PeerError) as caught:
            encrypt.check_encryption(image, prepared, served, KEK)
        assert caught.value.code == code
    with pytest.raises(PeerError):
        encrypt.check_encryption(image, prepared, good, encrypt.Kek(KEK.uri, Secret(bytes(32))))
    encrypt.check_encryption(image, prepared, good, KEK)


def test_the_check_reads_what_was_staged(image: sources.SourceImage, prepare: Prepare, tmp_path: Path) -> None:
    prepared = prepare(image)
    path = tmp_path / "staging-all/layer-1"
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(PeerError):
        encrypt.check_encryption(image, prepared, prepared.manifest, KEK)


def test_a_source_whose_config_lies_is_not_published(tmp_path: Path, prepare: Prepare) -> None:
    image = load(make_layout(tmp_path / "lies", [gzip.compress(b"something else"), PLAIN[1]]))
    prepared = prepare(image)
    with pytest.raises(PeerError, match="diff id") as caught:
        encrypt.check_encryption(image, prepared, prepared.manifest, KEK)
    assert caught.value.code == "layer-broken"


# sources and layouts


def test_a_layer_that_is_not_what_the_manifest_says(image: sources.SourceImage, tmp_path: Path, prepare: Prepare) -> None:
    path = tmp_path / "layout/blobs/sha256" / image.manifest.layers[0].digest.hex
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(PeerError) as caught:
        prepare(image)
    assert caught.value.code == "digest-mismatch"
    path.unlink()
    with pytest.raises(UsageError):
        list(image.open_layer(image.manifest.layers[0]))


def test_a_layout_of_several_images_needs_a_tag(tmp_path: Path) -> None:
    first = load(make_layout(tmp_path / "l"))
    layout.write_layout(tmp_path / "l", "second:with", encrypt.copy_image(first))
    with pytest.raises(UsageError, match="2 images") as caught:
        load(tmp_path / "l")
    assert "second:with, t" in caught.value.fix
    assert load(f"{tmp_path / 'l'}:second:with").manifest == first.manifest
    assert load(f"oci:{tmp_path / 'l'}:t").manifest == first.manifest
    with pytest.raises(UsageError, match="0 images"):
        load(f"{tmp_path / 'l'}:u")


def test_a_path_may_have_colons(tmp_path: Path) -> None:
    make_layout(tmp_path / "a:b:c")
    assert load(tmp_path / "a:b:c").config.platform == LINUX_AMD64
    assert load(f"{tmp_path / 'a:b:c'}:t").config.platform == LINUX_AMD64


def test_an_archive_is_read_without_unpacking(tmp_path: Path) -> None:
    make_layout(tmp_path / "l")
    with tarfile.open(tmp_path / "l.tar", "w") as archive:
        for path in sorted((tmp_path / "l").rglob("*")):
            archive.add(path, "./" + str(path.relative_to(tmp_path / "l")), recursive=False)
    image = load(tmp_path / "l.tar")
    assert b"".join(image.open_layer(image.manifest.layers[0])) == gzip.compress(PLAIN[0]) or image.manifest.layers[0].size > 0
    with pytest.raises(UsageError, match="not a tar"):
        (tmp_path / "l.tar.gz").write_bytes(gzip.compress((tmp_path / "l.tar").read_bytes()))
        load(tmp_path / "l.tar.gz")


def test_links_inside_an_archive_are_followed(tmp_path: Path) -> None:
    """`docker save` writes equal layers as symbolic links to the first."""
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name, content in (("one/layer.tar", b"content"), ("manifest.json", b"[]")):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        links = (("two/layer.tar", tarfile.SYMTYPE, "../one/layer.tar"), ("hard", tarfile.LNKTYPE, "one/layer.tar"))
        for name, kind, target in links:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, target
            archive.addfile(member)
    archive_files = files.ArchiveFiles(tmp_path / "a.tar")
    for name in ("one/layer.tar", "two/layer.tar", "hard"):
        assert b"".join(archive_files.open(name)) == b"content"
        assert archive_files.size(name) == 7
    with pytest.raises(UsageError):
        archive_files.size("none")


def test_the_platform_is_chosen_and_the_others_named(tmp_path: Path) -> None:
    make_layout(tmp_path / "l")
    blobs = tmp_path / "l/blobs/sha256"
    entry = json.loads((tmp_path / "l/index.json").read_text())["manifests"][0]
    digest, size = Digest.parse(entry["digest"]), entry["size"]
    inner = Index(
        media.OCI_INDEX,
        tuple(Descriptor(media.OCI_MANIFEST, digest, size, platform=Platform("linux", a)) for a in ("arm64", "amd64")),
    ).encode()
    (blobs / hashlib.sha256(inner).hexdigest()).write_bytes(inner)
    outer = Index(media.OCI_INDEX, (Descriptor(media.OCI_INDEX, Digest.of(inner), len(inner)),))
    (tmp_path / "l/index.json").write_bytes(outer.encode())
    assert load(tmp_path / "l").platforms == ("linux/arm64",)


@pytest.mark.parametrize("text", ["/no/such", "./no/such", "oci:/no/such", "docker-archive:/no/such"])
def test_a_source_that_is_not_there(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        load(text)
    assert caught.value.code == "not-found"


def test_what_is_no_path_is_a_reference() -> None:
    asked: list[str] = []

    def connect(host: str) -> sources.Registry:
        asked.append(host)
        raise UsageError("usage", "asked")

    for text in ("host.example/app:t", "docker://host.example/app"):
        with pytest.raises(UsageError, match="asked"):
            sources.open_source(text, connect)
    assert asked == ["host.example", "host.example"]
    assert Reference.parse("host.example/app").registry == asked[0]


def test_a_layout_is_written_whole_or_not_at_all(image: sources.SourceImage, tmp_path: Path) -> None:
    def broken() -> Iterator[bytes]:
        yield b"some"
        raise EnvironmentFault("environment", "the source went away")

    prepared = encrypt.copy_image(image)
    spoiled = dataclasses.replace(prepared, blobs={**prepared.blobs, prepared.manifest.layers[1].digest: broken})
    with pytest.raises(EnvironmentFault):
        layout.write_layout(tmp_path / "out", "t", spoiled)
    assert not (tmp_path / "out/index.json").exists()
    assert [path.name for path in (tmp_path / "out").rglob(".writing-*")] == []
    (tmp_path / "home").mkdir()
    (tmp_path / "home/notes.txt").write_text("mine")
    with pytest.raises(UsageError) as caught:
        layout.write_layout(tmp_path / "home", "t", prepared)
    assert caught.value.code == "already-exists"
