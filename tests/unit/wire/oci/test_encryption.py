"""ocicrypt annotations and key packets, with upstream's known answer."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from enclave_cc.crypto.ctr import apply_ctr
from enclave_cc.crypto.secret import Secret
from enclave_cc.errors import PeerError
from enclave_cc.wire.oci import encryption as enc
from enclave_cc.wire.oci.digest import Digest

KEK = Secret(bytes(range(32)))
PRIVATE = enc.PrivateOptions(Secret(b"k" * 32), b"n" * 16, "sha256:" + "ab" * 32)

# guest-components 99529ff4, ocicrypt-rs/data/sample_kbc_annotation.json (Apache-2.0), a version 1 packet
UPSTREAM = {
    "kid": "kbs:///default/key/1",
    "wrapped_data": (
        "KxAFgXwa0y72Xdygub9lF00RVMtSRbYzvakIEASgi3Gvt1wGLkhKPXf0S033Jdi6vAN6zBM7d0xZSDo2JCeew0FeKwTYgdJfdcPhuEpZOpjhwIsidyeiunzp0J/crvI1"
        "tSPZJw4DPHZN2eQtg71rDzIbuDM5ATheiDM9/YJv+k+n6Nv6/pRb8qynNzbWFz7Q8wEo1ZZlL6UftOBJ6j9GuEOTM2k/B+5sMA2VhGHSzDsKA1mn0qzcn2HJg4GcmxwD"
        "pJwzm5n7B4iIJ3A0umrQAjQ="
    ),
    "iv": "3PQMqtjbR4hxCr83",
    "wrap_type": "A256GCM",
}
UPSTREAM_KEK = Secret(bytes.fromhex("d99b7705b0ba7a168295b3a3367270b0dd9b371bf514ca8b9ba7f0a33711daea"))  # of its sample KBC


def pack(**more: Any) -> bytes:
    value = {
        "kid": "kbs:///a/b/c",
        "wrapped_data": "AAAA",
        "iv": base64.b64encode(bytes(12)).decode(),
        "wrap_type": "A256GCM",
        **more,
    }
    return json.dumps({k: v for k, v in value.items() if v is not None}).encode()


def test_opens_upstreams_packet() -> None:
    private = enc.KeyPacket.parse(json.dumps(UPSTREAM).encode()).open(UPSTREAM_KEK)
    assert base64.b64encode(private.symkey.reveal()) == b"1jL2jJV0Oyz2nmPkLtqulW6cKcpIUN5FpILcVnP5Uqs="
    assert private.nonce is not None


def test_a_packet_survives_the_round_trip_in_the_form_that_upstream_reads() -> None:
    packet = enc.KeyPacket.seal("kbs:///default/key/x", PRIVATE, KEK)
    found = enc.KeyPacket.parse(packet.encode())
    assert found == packet
    assert found.open(KEK) == PRIVATE
    members = json.loads(packet.encode())  # confidential-data-hub, annotation_packet/v2.rs
    assert members["version"] == "0.1.0"
    assert members["provider"] == "kbs"
    assert set(members) == {"version", "provider", "kid", "wrapped_data", "iv", "wrap_type", "provider_settings", "annotations"}


def test_each_packet_has_a_nonce_of_its_own() -> None:
    packets = [enc.KeyPacket.seal("kbs:///a/b/c", PRIVATE, KEK) for _ in range(64)]
    assert len({packet.iv for packet in packets}) == 64


def test_a_packet_wrapped_with_ctr_opens() -> None:
    iv = bytes(range(16))
    packet = enc.KeyPacket("kbs:///a/b/c", apply_ctr(KEK, iv, PRIVATE.encode().reveal()), iv, "A256CTR")
    assert enc.KeyPacket.parse(packet.encode()).open(KEK) == PRIVATE


@pytest.mark.parametrize("kind", ["A256GCM", "A256CTR"])
def test_another_kek_opens_nothing(kind: str) -> None:
    packet = enc.KeyPacket.seal("kbs:///a/b/c", PRIVATE, KEK)
    if kind == "A256CTR":
        packet = enc.KeyPacket("kbs:///a/b/c", apply_ctr(KEK, bytes(16), PRIVATE.encode().reveal()), bytes(16), kind)
    for wrong in (Secret(bytes(32)), Secret(bytes(16)), Secret(b"")):
        with pytest.raises(PeerError) as caught:
            packet.open(wrong)
        assert caught.value.code == "layer-broken"


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"version": "9"}, "unsupported-image"),
        ({"provider": "aliyun"}, "unsupported-image"),
        ({"wrap_type": "A128GCM"}, "unsupported-image"),
        ({"wrap_type": None}, "malformed"),
        ({"iv": base64.b64encode(bytes(16)).decode()}, "malformed"),
        ({"iv": "!"}, "malformed"),
        ({"kid": "https://x/a/b/c"}, "malformed"),
        ({"kid": "kbs:///a/b"}, "malformed"),
        ({"kid": "kbs:///../b/c"}, "malformed"),
        ({"kid": 5}, "malformed"),
        ({"wrapped_data": None}, "malformed"),
    ],
)
def test_refuses_other_packets(changes: dict[str, Any], code: str) -> None:
    with pytest.raises(PeerError) as caught:
        enc.KeyPacket.parse(pack(**changes))
    assert caught.value.code == code


def test_a_layers_annotations_survive_the_round_trip() -> None:
    packets = (enc.KeyPacket.seal("kbs:///a/b/c", PRIVATE, KEK), enc.KeyPacket.seal("kbs:///d/e/f", PRIVATE, KEK))
    made = enc.LayerEncryption(enc.PublicOptions(b"h" * 32), packets)
    annotations = made.to_annotations()
    assert set(annotations) == {
        "org.opencontainers.image.enc.keys.provider.attestation-agent",
        "org.opencontainers.image.enc.pubopts",
    }
    assert enc.LayerEncryption.parse({**annotations, "other": "x"}) == made
    public = json.loads(base64.b64decode(annotations[enc.PUBLIC_OPTIONS]))
    assert public == {"cipher": "AES_256_CTR_HMAC_SHA256", "hmac": base64.b64encode(b"h" * 32).decode(), "cipheroptions": {}}


def test_any_providers_packets_are_read() -> None:
    packet = enc.KeyPacket.seal("kbs:///a/b/c", PRIVATE, KEK)
    annotations = enc.LayerEncryption(enc.PublicOptions(b"h" * 32), (packet,)).to_annotations()
    annotations["org.opencontainers.image.enc.keys.provider.other"] = annotations.pop(enc.PROVIDER)
    assert enc.LayerEncryption.parse(annotations).packets == (packet,)


@pytest.mark.parametrize(
    ("annotations", "code"),
    [
        ({}, "malformed"),
        ({enc.PROVIDER: "AAAA"}, "malformed"),
        ({enc.PUBLIC_OPTIONS: "?"}, "malformed"),
        ({enc.PUBLIC_OPTIONS: base64.b64encode(b'{"cipher":"X","hmac":""}').decode()}, "unsupported-image"),
    ],
)
def test_refuses_broken_annotations(annotations: dict[str, str], code: str) -> None:
    with pytest.raises(PeerError) as caught:
        enc.LayerEncryption.parse(annotations)
    assert caught.value.code == code


def test_keys_for_people_only_are_said_to_be_unsupported() -> None:
    annotations = enc.LayerEncryption(enc.PublicOptions(b"h" * 32), ()).to_annotations()
    annotations.pop(enc.PROVIDER)
    with pytest.raises(PeerError, match="jwe") as caught:
        enc.LayerEncryption.parse({**annotations, enc.KEYS_PREFIX + "jwe": "AAAA"})
    assert caught.value.code == "unsupported-image"


def test_public_options_win_over_private_ones() -> None:
    joined = enc.LayerKey.join(enc.PublicOptions(b"h" * 32, b"p" * 16), PRIVATE)
    assert joined.nonce == b"p" * 16
    assert enc.LayerKey.join(enc.PublicOptions(b"h" * 32), PRIVATE).plain_digest == Digest.parse("sha256:" + "ab" * 32)
    with pytest.raises(PeerError) as caught:
        enc.LayerKey.join(enc.PublicOptions(b"h" * 32), enc.PrivateOptions(Secret(b"k" * 32), None))
    assert caught.value.code == "layer-broken"


def test_messages_hold_no_key() -> None:
    broken = b'{"symkey": "' + base64.b64encode(b"S" * 31) + b'", "cipheroptions": {}}'
    with pytest.raises(PeerError) as caught:
        enc.PrivateOptions.parse(broken)
    assert base64.b64encode(b"S" * 31).decode() not in str(caught.value)
    assert "kkkk" not in repr(PRIVATE)
