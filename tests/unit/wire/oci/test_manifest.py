"""Manifests, indexes and configs: what is read, and what two readers could read differently and is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from enclave_cc.errors import PeerError
from enclave_cc.wire.oci import media_type as media
from enclave_cc.wire.oci.config import ImageConfig
from enclave_cc.wire.oci.digest import Digest
from enclave_cc.wire.oci.document import Document
from enclave_cc.wire.oci.manifest import LAYER_LIMIT, LINUX_AMD64, Descriptor, Index, Manifest, Platform, parse_manifest

DIGEST = "sha256:" + "ab" * 32


def descriptor(kind: str = media.OCI_LAYER + "+gzip", **more: Any) -> dict[str, Any]:
    return {"mediaType": kind, "digest": DIGEST, "size": 7, **more}


def manifest(**more: Any) -> dict[str, Any]:
    return {
        "schemaVersion": 2,
        "mediaType": media.OCI_MANIFEST,
        "config": descriptor(media.OCI_CONFIG),
        "layers": [descriptor()],
        **more,
    }


def index(*platforms: str, **more: Any) -> dict[str, Any]:
    def entry(text: str) -> dict[str, Any]:
        os, architecture, *variant = text.split("/")
        platform = {"os": os, "architecture": architecture, **({"variant": variant[0]} if variant else {})}
        return descriptor(media.OCI_MANIFEST, platform=platform, annotations={"for": text})

    return {"schemaVersion": 2, "manifests": [entry(p) for p in platforms], **more}


def encode(value: object) -> bytes:
    return json.dumps(value).encode()


def test_a_manifest_survives_the_round_trip() -> None:
    layers = (
        Descriptor(media.OCI_LAYER, Digest.parse(DIGEST), 3, {"a": "b"}),
        Descriptor(media.OCI_LAYER + "+zstd", Digest.parse(DIGEST), 0),
    )
    subject = Descriptor(
        media.OCI_MANIFEST, Digest.parse(DIGEST), 9, artifact_type="x/y", platform=Platform("linux", "arm64", "v8")
    )
    made = Manifest(media.OCI_MANIFEST, Descriptor(media.OCI_CONFIG, Digest.parse(DIGEST), 2), layers, {"k": "v"}, "t/u", subject)
    assert parse_manifest(made.encode(), media.OCI_MANIFEST) == made
    listed = Index(media.OCI_INDEX, (subject,), {"k": "v"})
    assert parse_manifest(listed.encode(), media.OCI_INDEX + "; charset=utf-8") == listed


@pytest.mark.parametrize(("kind", "config"), [(media.OCI_MANIFEST, media.OCI_CONFIG), (media.DOCKER_MANIFEST, media.DOCKER_CONFIG)])
def test_reads_oci_and_docker(kind: str, config: str) -> None:
    found = parse_manifest(encode(manifest(mediaType=kind, config=descriptor(config))), kind)
    assert isinstance(found, Manifest)
    assert found.config.media_type == config


@pytest.mark.parametrize(
    "value",
    [
        manifest(schemaVersion=1),
        manifest(schemaVersion="2"),
        manifest(mediaType=media.OCI_INDEX),
        manifest(manifests=[]),  # CVE-2021-41190: an index to one reader, a manifest to another
        {"schemaVersion": 2, "mediaType": media.OCI_MANIFEST},
        {"schemaVersion": 2, "layers": []},
        manifest(layers=[descriptor(size=-1)]),
        manifest(layers=[descriptor(size=True)]),
        manifest(layers=[descriptor(size=1 << 63)]),
        manifest(layers=[descriptor(size=1.5)]),
        manifest(layers=[descriptor(digest="md5:abc")]),
        manifest(layers=[descriptor(digest=DIGEST.upper())]),
        manifest(layers=["x"]),
        manifest(layers={}),
        manifest(layers=[descriptor()] * (LAYER_LIMIT + 1)),
        manifest(layers=[descriptor(annotations={"a": 1})]),
        manifest(annotations=[]),
        manifest(mediaType="application/vnd.docker.distribution.manifest.v1+json"),
        [],
        None,
    ],
)
def test_refuses_what_is_not_a_manifest(value: object) -> None:
    with pytest.raises(PeerError):
        parse_manifest(encode(value))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff\xfe",
        b'{"schemaVersion": 2, "schemaVersion": 2}',
        b'{"schemaVersion": NaN}',
        b"[" * 100_000,
        b'{"schemaVersion": ' + b"9" * 5000 + b"}",
        b'{"schemaVersion": 2} ' + b" " * (4 << 20),
        b'{"a": "\\ud800"}',
    ],
)
def test_refuses_what_is_not_plain_json(data: bytes) -> None:
    with pytest.raises(PeerError) as caught:
        parse_manifest(data)
    assert caught.value.code in {"malformed", "unsupported-image"}


def test_the_served_type_must_be_the_stated_one() -> None:
    with pytest.raises(PeerError, match="not the one it is served as"):
        parse_manifest(encode(manifest()), media.DOCKER_MANIFEST)
    with pytest.raises(PeerError, match="media type text/html"):
        parse_manifest(encode(manifest()), "text/html")


def test_an_index_gives_the_manifest_for_the_platform() -> None:
    found = parse_manifest(encode(index("linux/arm64", "linux/amd64", "linux/arm/v7", "linux/arm/v6")))
    assert isinstance(found, Index)
    assert found.select(LINUX_AMD64).annotations["for"] == "linux/amd64"
    assert found.select(Platform.parse("linux/arm/v6")).annotations["for"] == "linux/arm/v6"
    with pytest.raises(PeerError, match=r"not for windows/amd64 but for linux/arm64, linux/amd64") as caught:
        found.select(Platform("windows", "amd64"))
    assert caught.value.code == "unsupported-image"


def config(**more: Any) -> dict[str, Any]:
    run = {"Env": ["A=b=c", "EMPTY="], "Entrypoint": ["/e"], "Cmd": ["x"], "User": "u:g", "WorkingDir": "/w", "Volumes": {"/v": {}}}
    return {"os": "linux", "architecture": "amd64", "config": run, "rootfs": {"type": "layers", "diff_ids": [DIGEST]}, **more}


def test_reads_an_image_config() -> None:
    found = ImageConfig.parse(encode(config()))
    assert found == ImageConfig(
        platform=LINUX_AMD64,
        diff_ids=(Digest.parse(DIGEST),),
        entrypoint=("/e",),
        cmd=("x",),
        env=("A=b=c", "EMPTY="),
        user="u:g",
        working_dir="/w",
        volumes=("/v",),
    )


def test_null_means_absent_in_a_config() -> None:
    """Docker writes null for what is not set."""
    empty = dict.fromkeys(("Env", "Entrypoint", "Cmd", "User", "WorkingDir", "Volumes", "Labels", "ExposedPorts", "StopSignal"))
    found = ImageConfig.parse(encode(config(config=empty)))
    assert (found.env, found.entrypoint, found.cmd, found.user, found.volumes, found.labels) == ((), (), (), "", (), {})
    assert ImageConfig.parse(encode(config(config=None))).cmd == ()


@pytest.mark.parametrize(
    "value",
    [
        config(rootfs={"type": "other", "diff_ids": []}),
        config(rootfs={"diff_ids": ["x"]}),
        config(rootfs={"diff_ids": [DIGEST] * 300}),
        config(config={"Env": ["NOVALUE"]}),
        config(config={"Env": ["=x"]}),
        config(config={"Cmd": "sh"}),
        config(config={"Cmd": ["a\0b"]}),
        config(config={"WorkingDir": "/a\0"}),
        config(config={"Volumes": ["/v"]}),
        config(config={"User": 0}),
    ],
)
def test_refuses_a_config_of_another_shape(value: object) -> None:
    with pytest.raises(PeerError) as caught:
        ImageConfig.parse(encode(value))
    assert caught.value.code == "malformed"


@pytest.mark.parametrize(
    ("media_type", "compression", "encrypted"),
    [
        (media.OCI_LAYER, "", False),
        (media.OCI_LAYER + "+gzip", "gzip", False),
        (media.OCI_LAYER + "+zstd+encrypted", "zstd", True),
        (media.OCI_LAYER_NONDISTRIBUTABLE + "+gzip+encrypted", "gzip", True),
        (media.DOCKER_LAYER_GZIP, "gzip", False),
        (media.DOCKER_LAYER, "", False),
    ],
)
def test_a_layers_type_says_compression_and_encryption(media_type: str, compression: str, encrypted: bool) -> None:
    assert media.LayerType.parse(media_type) == media.LayerType(compression, encrypted)


@pytest.mark.parametrize(
    "media_type", ["", "x", media.DOCKER_LAYER_GZIP + "+encrypted", media.OCI_LAYER + "+lz4", media.OCI_CONFIG]
)
def test_other_layers_are_not_supported(media_type: str) -> None:
    with pytest.raises(PeerError) as caught:
        media.LayerType.parse(media_type)
    assert caught.value.code == "unsupported-image"


def test_a_documents_members_keep_their_types() -> None:
    document = Document.parse(b'{"a": "x", "n": 5, "z": null, "l": ["x"], "o": {"k": "v"}, "b": "AAE="}', "it")
    assert (document.text("a"), document.number("n"), document.texts("l"), document.text_map("o")) == ("x", 5, ("x",), {"k": "v"})
    assert document.raw_bytes("b", size=2) == b"\0\1"
    assert not document.has("z")
    for wrong in (
        lambda: document.text("n"),
        lambda: document.number("a"),
        lambda: document.document("l"),
        lambda: document.texts("o"),
    ):
        with pytest.raises(PeerError):
            wrong()
    with pytest.raises(PeerError):
        document.raw_bytes("b", size=3)
    with pytest.raises(PeerError):
        document.raw_bytes("a")
