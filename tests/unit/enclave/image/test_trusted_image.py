"""The order of trust: every step out of order is our bug, every byte that does not hold is the peer's doing."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from enclave_cc.enclave.image.trusted_image import TrustedImage
from enclave_cc.errors import PeerError
from enclave_cc.wire.oci import media_type as media
from enclave_cc.wire.oci.digest import Digest
from enclave_cc.wire.oci.manifest import LINUX_AMD64, Descriptor, Index, Manifest, Platform
from enclave_cc.wire.oci.reference import Reference

DIFF_ID = Digest.of(b"layer")
ROOTFS = {"type": "layers", "diff_ids": [DIFF_ID]}
CONFIG = json.dumps({"os": "linux", "architecture": "amd64", "config": {}, "rootfs": ROOTFS}).encode()
LAYER = Descriptor(media.OCI_LAYER + "+gzip", Digest.of(b"blob"), 4)
MANIFEST = Manifest(media.OCI_MANIFEST, Descriptor(media.OCI_CONFIG, Digest.of(CONFIG), len(CONFIG)), (LAYER,)).encode()
ACCEPT = b'{"default": [{"type": "insecureAcceptAnything"}]}'
IMAGE = Reference.parse("h:1/a:t")


def index(*descriptors: Descriptor) -> bytes:
    return Index(media.OCI_INDEX, descriptors).encode()


ENTRY = Descriptor(media.OCI_MANIFEST, Digest.of(MANIFEST), len(MANIFEST), platform=LINUX_AMD64)


def no_key(uri: str) -> bytes:
    raise AssertionError(uri)


def load(*steps: str, image: Reference = IMAGE, config: bytes = CONFIG) -> TrustedImage:
    trusted = TrustedImage(image)
    actions: dict[str, Callable[[], object]] = {
        "policy": lambda: trusted.load_policy(ACCEPT),
        "manifest": lambda: trusted.load_root(MANIFEST, media.OCI_MANIFEST),
        "index": lambda: trusted.load_root(index(ENTRY), media.OCI_INDEX),
        "platform": lambda: trusted.load_platform(MANIFEST),
        "signatures": lambda: trusted.load_signatures([], no_key),
        "config": lambda: trusted.load_config(config),
    }
    for step in steps:
        actions[step]()
    return trusted


def test_in_order_it_gives_the_layers() -> None:
    for way in (("manifest",), ("index", "platform")):
        trusted = load("policy", *way, "signatures", "config")
        (layer,) = trusted.layers
        assert (layer.descriptor, layer.kind, layer.diff_id) == (LAYER, media.LayerType("gzip", encrypted=False), DIFF_ID)
        assert trusted.manifest_digest == Digest.of(MANIFEST)
    assert trusted.signed_digests == (Digest.of(index(ENTRY)), Digest.of(MANIFEST))


@pytest.mark.parametrize(
    "steps",
    [
        ("manifest",),
        ("policy", "policy"),
        ("policy", "signatures"),
        ("policy", "platform"),
        ("policy", "manifest", "manifest"),
        ("policy", "manifest", "platform"),
        ("policy", "manifest", "config"),
        ("policy", "index", "signatures"),
        ("policy", "index", "index"),
        ("policy", "index", "platform", "platform"),
        ("policy", "manifest", "signatures", "signatures"),
        ("policy", "manifest", "signatures", "config", "config"),
    ],
)
def test_out_of_order_is_a_bug(steps: tuple[str, ...]) -> None:
    with pytest.raises(RuntimeError):
        load(*steps)


@pytest.mark.parametrize("attribute", ["layers", "manifest_digest", "config_descriptor"])
def test_nothing_is_handed_out_before_it_is_trusted(attribute: str) -> None:
    for steps in ((), ("policy",), ("policy", "manifest")):
        with pytest.raises(RuntimeError):
            getattr(load(*steps), attribute)
    with pytest.raises(RuntimeError):
        _ = load("policy", "manifest", "signatures").layers


def refused(code: str, action: Callable[[], object]) -> None:
    with pytest.raises(PeerError) as caught:
        action()
    assert caught.value.code == code


def test_a_pinned_digest_is_held() -> None:
    pinned = Reference.parse(f"h:1/a@{Digest.of(MANIFEST)}")
    load("policy", "manifest", "signatures", image=pinned)
    refused("digest-mismatch", lambda: load("policy", "index", image=pinned))


def test_the_platforms_manifest_is_the_one_that_the_index_names() -> None:
    trusted = load("policy", "index")
    refused("digest-mismatch", lambda: trusted.load_platform(MANIFEST + b" "))
    refused("digest-mismatch", lambda: trusted.load_platform(MANIFEST.replace(b"gzip", b"zstd")))


def test_an_index_without_the_platform() -> None:
    trusted = load("policy")
    arm = Descriptor(ENTRY.media_type, ENTRY.digest, ENTRY.size, platform=Platform("linux", "arm64"))
    refused("unsupported-image", lambda: trusted.load_root(index(arm), media.OCI_INDEX))


def test_an_index_of_indexes_is_not_followed() -> None:
    trusted = load("policy")
    inner = index(ENTRY)
    nested = Descriptor(media.OCI_INDEX, Digest.of(inner), len(inner), platform=LINUX_AMD64)
    refused("unsupported-image", lambda: trusted.load_root(index(nested), media.OCI_INDEX))


def test_the_config_is_the_one_that_the_manifest_names() -> None:
    refused("digest-mismatch", lambda: load("policy", "manifest", "signatures", "config", config=CONFIG + b" "))
    refused(
        "digest-mismatch", lambda: load("policy", "manifest", "signatures", "config", config=CONFIG.replace(b"linux", b"linuy"))
    )


def with_config(config: bytes) -> Callable[[], object]:
    manifest = Manifest(media.OCI_MANIFEST, Descriptor(media.OCI_CONFIG, Digest.of(config), len(config)), (LAYER,)).encode()

    def run() -> object:
        trusted = TrustedImage(IMAGE)
        trusted.load_policy(ACCEPT)
        trusted.load_root(manifest, media.OCI_MANIFEST)
        trusted.load_signatures([], no_key)
        return trusted.load_config(config)

    return run


def test_a_config_for_another_machine_or_with_other_layers() -> None:
    refused("unsupported-image", with_config(CONFIG.replace(b"amd64", b"arm64")))
    refused("malformed", with_config(CONFIG.replace(f'["{DIFF_ID}"]'.encode(), b"[]")))


def test_an_artifact_is_no_image() -> None:
    artifact = Manifest(media.OCI_MANIFEST, Descriptor(media.OCI_EMPTY, Digest.of(b"{}"), 2), (LAYER,)).encode()
    trusted = load("policy")
    trusted.load_root(artifact, media.OCI_MANIFEST)
    trusted.load_signatures([], no_key)
    refused("unsupported-image", lambda: trusted.config_descriptor)


def test_a_refusal_of_the_policy_lets_nothing_through() -> None:
    trusted = TrustedImage(IMAGE)
    trusted.load_policy(b'{"default": [{"type": "reject"}]}')
    trusted.load_root(MANIFEST, media.OCI_MANIFEST)
    refused("signature-untrusted", lambda: trusted.load_signatures([], no_key))
    with pytest.raises(RuntimeError):
        trusted.load_config(CONFIG)
