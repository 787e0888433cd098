"""OCI parsers: whatever bytes come, a value or a `PeerError`; what was written is read back as it was."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enclave_cc.crypto.secret import Secret
from enclave_cc.errors import PeerError, UsageError
from enclave_cc.wire.oci import auth, encryption, media_type, signature, signature_policy
from enclave_cc.wire.oci.config import ImageConfig
from enclave_cc.wire.oci.digest import Digest
from enclave_cc.wire.oci.manifest import Descriptor, Index, Manifest, Platform, parse_manifest
from enclave_cc.wire.oci.reference import Reference

DIGEST = "sha256:" + "ab" * 32
# JSON that looks like the real thing: known member names, with values of the right type or of any other.
NAMES = st.sampled_from(
    [
        "schemaVersion",
        "mediaType",
        "config",
        "layers",
        "manifests",
        "digest",
        "size",
        "annotations",
        "platform",
        "os",
        "architecture",
        "subject",
        "rootfs",
        "diff_ids",
        "Env",
        "Entrypoint",
        "Cmd",
        "Volumes",
        "critical",
        "identity",
        "image",
        "type",
        "docker-reference",
        "docker-manifest-digest",
        "default",
        "transports",
        "docker",
        "keyData",
        "keyPath",
        "signedIdentity",
        "auths",
        "auth",
        "token",
        "cipher",
        "hmac",
        "cipheroptions",
        "nonce",
        "symkey",
        "kid",
        "wrapped_data",
        "iv",
        "wrap_type",
        "version",
        "provider",
        "dsseEnvelope",
        "payload",
        "payloadType",
        "signatures",
        "sig",
    ]
) | st.text(max_size=8)
WORDS = st.sampled_from(
    [
        DIGEST,
        "kbs:///a/b/c",
        "A256GCM",
        "reject",
        "sigstoreSigned",
        "",
        "AAAA",
        "linux",
        "a/b:c",
        encryption.CIPHER,
        media_type.OCI_MANIFEST,
        media_type.OCI_INDEX,
        media_type.OCI_CONFIG,
        media_type.SIGSTORE_BUNDLE,
        media_type.IN_TOTO,
    ]
)
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | WORDS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=6),
    max_leaves=10,
)
DOCUMENTS = st.binary(max_size=200) | st.dictionaries(NAMES, VALUES, max_size=8).map(lambda value: json.dumps(value).encode())

PARSERS: list[Callable[[bytes], object]] = [
    parse_manifest,
    ImageConfig.parse,
    signature.SimpleSigning.parse,
    signature.Bundle.parse,
    signature.Statement.parse,
    signature_policy.SignaturePolicy.parse,
    encryption.PublicOptions.parse,
    encryption.PrivateOptions.parse,
    encryption.KeyPacket.parse,
    auth.Token.parse,
    auth.AuthFile.parse,
]


@settings(max_examples=300, deadline=None)
@given(data=DOCUMENTS)
def test_parsers_raise_nothing_but_peer_errors(data: bytes) -> None:
    for parse in PARSERS:
        with contextlib.suppress(PeerError):
            parse(data)


@settings(max_examples=150, deadline=None)
@given(text=st.text(max_size=60) | st.from_regex(r"[a-zA-Z0-9./:@_\[\]-]{0,40}", fullmatch=True))
def test_a_reference_is_read_back_or_refused(text: str) -> None:
    try:
        found = Reference.parse(text)
    except UsageError:
        return
    assert Reference.parse(str(found)) == found
    assert Reference.parse_hostile(str(found)) == found


@settings(max_examples=150, deadline=None)
@given(text=st.text(max_size=80) | st.from_regex(r'[A-Za-z=," \\]{0,60}', fullmatch=True))
def test_challenges_are_read_or_refused(text: str) -> None:
    with contextlib.suppress(PeerError):
        auth.parse_challenges(text)


@settings(max_examples=150, deadline=None)
@given(annotations=st.dictionaries(st.sampled_from([encryption.PROVIDER, encryption.PUBLIC_OPTIONS, "x"]), st.text(max_size=40)))
def test_annotations_are_read_or_refused(annotations: dict[str, str]) -> None:
    with contextlib.suppress(PeerError):
        encryption.LayerEncryption.parse(annotations)


DIGESTS = st.binary(min_size=32, max_size=32).map(lambda raw: Digest.parse(f"sha256:{raw.hex()}"))
TEXTS = st.text(st.characters(codec="utf-8"), max_size=20)
MAPS = st.dictionaries(TEXTS, TEXTS, max_size=4)
PLATFORMS = st.none() | st.builds(Platform, TEXTS, TEXTS, TEXTS)
DESCRIPTORS = st.builds(Descriptor, TEXTS, DIGESTS, st.integers(0, 2**63 - 1), MAPS, PLATFORMS, TEXTS)


@settings(max_examples=100, deadline=None)
@given(config=DESCRIPTORS, layers=st.lists(DESCRIPTORS, max_size=5), annotations=MAPS, artifact=TEXTS)
def test_manifests_are_read_back(config: Descriptor, layers: list[Descriptor], annotations: dict[str, str], artifact: str) -> None:
    made = Manifest(media_type.OCI_MANIFEST, config, tuple(layers), annotations, artifact, config)
    assert parse_manifest(made.encode(), media_type.OCI_MANIFEST) == made
    index = Index(media_type.OCI_INDEX, tuple(layers), annotations)
    assert parse_manifest(index.encode(), media_type.OCI_INDEX) == index


@settings(max_examples=50, deadline=None)
@given(data=st.data(), kek=st.binary(min_size=32, max_size=32))
def test_a_changed_packet_does_not_open(data: st.DataObject, kek: bytes) -> None:
    private = encryption.PrivateOptions(Secret(b"k" * 32), b"n" * 16)
    packet = encryption.KeyPacket.seal("kbs:///a/b/c", private, Secret(kek))
    at = data.draw(st.integers(0, len(packet.wrapped) - 1))
    bit = 1 << data.draw(st.integers(0, 7))
    changed = packet.wrapped[:at] + bytes([packet.wrapped[at] ^ bit]) + packet.wrapped[at + 1 :]
    with pytest.raises(PeerError) as caught:
        encryption.KeyPacket(packet.kid, changed, packet.iv).open(Secret(kek))
    assert caught.value.code == "layer-broken"
