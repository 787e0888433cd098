"""From a layer's encryption annotations to its cipher: the KEK comes from the KBS, each time.

No key is kept beyond one pull: the KBS decides anew for every start, whatever the node's cache holds.
"""

from __future__ import annotations

import hashlib
import threading
from typing import Protocol

from enclave_cc.crypto.layer import LayerCipher
from enclave_cc.crypto.secret import Secret
from enclave_cc.errors import EnclaveCcError, PeerError
from enclave_cc.wire.oci import encryption
from enclave_cc.wire.oci.manifest import Descriptor


class ResourceSource(Protocol):
    """Where resources of the data owner come from: the KBS, after attestation."""

    def get(self, uri: str) -> bytes:
        """The resource at a `kbs://` URI. Raises `PeerError("key-missing")` when there is none, "kbs-denied" and others."""
        ...


class KeyRing:
    """The KEKs of one pull: each asked for once, however many layers it opens. Safe for many threads."""

    def __init__(self, resources: ResourceSource) -> None:
        self._resources = resources
        self._lock = threading.Lock()
        self._keys: dict[str, Secret] = {}

    def get(self, kid: str) -> Secret:
        """The KEK; raises what the KBS's client raises."""
        with self._lock:
            if kid not in self._keys:
                self._keys[kid] = Secret(self._resources.get(kid))
            return self._keys[kid]


def unlock_layer(layer: Descriptor, keys: KeyRing) -> encryption.LayerKey:
    """The key of an encrypted layer, through the first packet that opens.

    Raises `PeerError`: "malformed" or "unsupported-image" for the annotations, "layer-broken" when a released KEK is
    not the one this layer's key was wrapped under, and what the KBS's client raises when no KEK is released.
    """
    found = encryption.LayerEncryption.parse(layer.annotations)
    failure: EnclaveCcError | None = None
    for packet in found.packets:
        try:
            return encryption.LayerKey.join(found.public, packet.open(keys.get(packet.kid)))
        except EnclaveCcError as error:
            failure = failure or error
    raise failure or PeerError("unsupported-image", "the layer has no key packet")


def make_cipher(key: encryption.LayerKey) -> LayerCipher:
    """A cipher for one pass over the layer."""
    return LayerCipher(key.symkey, key.nonce, key.hmac)


def name_in_cache(layer: Descriptor, key: encryption.LayerKey | None) -> str:
    """What the node's cache calls this layer.

    Of an encrypted layer the name depends on its key, so that only who was given the key can even ask for the sealed
    plaintext: an image of somebody else that lists the same ciphertext as a plain layer finds nothing.
    """
    if key is None:
        return f"{layer.digest}"
    possession = hashlib.sha256(b"enclave-cc/cache-name/1\0" + key.symkey.reveal() + key.nonce + key.hmac)
    return f"{layer.digest}+{possession.hexdigest()}"
