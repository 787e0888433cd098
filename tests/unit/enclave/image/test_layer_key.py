"""Layer keys: one request per KEK, the first packet that opens, names in the cache."""

from __future__ import annotations

import pytest

from enclave_cc.crypto.secret import Secret
from enclave_cc.enclave.image import layer_key
from enclave_cc.errors import PeerError
from enclave_cc.wire.oci import encryption as enc
from enclave_cc.wire.oci.digest import Digest
from enclave_cc.wire.oci.manifest import Descriptor

PRIVATE = enc.PrivateOptions(Secret(b"k" * 32), b"n" * 16)
KEK = b"K" * 32


class Resources:
    def __init__(self, **values: bytes) -> None:
        self.values, self.asked = values, []

    asked: list[str]

    def get(self, uri: str) -> bytes:
        self.asked.append(uri)
        name = uri.rpartition("/")[2]
        if name not in self.values:
            raise PeerError("key-missing", f"no {name}")
        return self.values[name]


def layer(*packets: enc.KeyPacket) -> Descriptor:
    annotations = enc.LayerEncryption(enc.PublicOptions(b"h" * 32), packets).to_annotations()
    return Descriptor("application/vnd.oci.image.layer.v1.tar+gzip+encrypted", Digest.of(b"x"), 1, annotations)


def packet(name: str, kek: bytes = KEK) -> enc.KeyPacket:
    return enc.KeyPacket.seal(f"kbs:///a/b/{name}", PRIVATE, Secret(kek))


def test_each_kek_is_asked_for_once_a_pull() -> None:
    resources = Resources(one=KEK)
    keys = layer_key.KeyRing(resources)
    for _ in range(3):
        assert layer_key.unlock_layer(layer(packet("one")), keys) == enc.LayerKey(PRIVATE.symkey, b"n" * 16, b"h" * 32)
    assert resources.asked == ["kbs:///a/b/one"]
    layer_key.unlock_layer(layer(packet("one")), layer_key.KeyRing(resources))
    assert len(resources.asked) == 2  # the next pull asks anew


def test_the_first_packet_that_opens_is_taken_and_the_first_failure_told() -> None:
    keys = layer_key.KeyRing(Resources(one=b"W" * 32, two=KEK))
    layer_key.unlock_layer(layer(packet("gone"), packet("one"), packet("two")), keys)
    with pytest.raises(PeerError) as caught:
        layer_key.unlock_layer(layer(packet("gone"), packet("one")), keys)
    assert caught.value.code == "key-missing"
    with pytest.raises(PeerError) as caught:
        layer_key.unlock_layer(layer(packet("one")), keys)
    assert caught.value.code == "layer-broken"


def test_a_layers_name_in_the_cache_needs_its_key() -> None:
    descriptor = layer(packet("one"))
    key = enc.LayerKey(PRIVATE.symkey, b"n" * 16, b"h" * 32)
    names = {
        layer_key.name_in_cache(descriptor, found)
        for found in (
            None,
            key,
            enc.LayerKey(Secret(b"o" * 32), key.nonce, key.hmac),
            enc.LayerKey(key.symkey, b"o" * 16, key.hmac),
            enc.LayerKey(key.symkey, key.nonce, b"o" * 32),
        )
    }
    assert len(names) == 5
    assert layer_key.name_in_cache(descriptor, None) == descriptor.digest


def test_the_cipher_decrypts_what_the_publisher_encrypted() -> None:
    from enclave_cc.crypto.layer import LayerEncrypter

    encrypter = LayerEncrypter()
    ciphertext = encrypter.update(b"plain" * 100)
    key = enc.LayerKey(encrypter.symkey, encrypter.nonce, encrypter.finish())
    cipher = layer_key.make_cipher(key)
    assert cipher.update(ciphertext) == b"plain" * 100
    cipher.verify()
