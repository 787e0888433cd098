"""Encrypted layers: ocicrypt's annotations and the attestation agent's key packet.

A layer's descriptor carries `...enc.pubopts` (cipher, HMAC) and one `...enc.keys.<scheme>` per way to get at the
private options (symmetric key, nonce). For scheme `provider.<name>` the value is a packet that names a key
encryption key (KEK) in the KBS and holds the private options wrapped under it (guest-components,
confidential-data-hub `annotation_packet/{v1,v2}.rs`). Version 2 is written; both are read.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping

from enclave_cc.crypto.aead import NONCE_SIZE, Aead
from enclave_cc.crypto.ctr import COUNTER_SIZE, apply_ctr
from enclave_cc.crypto.layer import CIPHER_NAME as CIPHER
from enclave_cc.crypto.layer import HMAC_SIZE, KEY_SIZE
from enclave_cc.crypto.secret import Secret
from enclave_cc.errors import PeerError, foreign
from enclave_cc.record import field, record
from enclave_cc.wire.oci.digest import Digest
from enclave_cc.wire.oci.document import Document, decode_base64, encode_json
from enclave_cc.wire.rcar.uri import ResourceUri

KEYS_PREFIX = "org.opencontainers.image.enc.keys."
PUBLIC_OPTIONS = "org.opencontainers.image.enc.pubopts"
PROVIDER_PREFIX = KEYS_PREFIX + "provider."
PROVIDER = PROVIDER_PREFIX + "attestation-agent"
_PACKET_VERSION = "0.1.0"
_PACKET_LIMIT = 16 << 10  # bytes; an honest packet is under 1 KiB
_PACKETS_LIMIT = 16  # per layer


@record
class PublicOptions:
    """What anyone may know: the cipher's name (fixed) and the 32-byte HMAC over the ciphertext."""

    hmac: bytes
    nonce: bytes | None = None  # cipher options may stand here; ocicrypt lets these win over the private ones

    @classmethod
    def parse(cls, data: bytes) -> PublicOptions:
        """Raises `PeerError`: "malformed", or "unsupported-image" for another cipher."""
        document = Document.parse(data, "the layer's public options", limit=_PACKET_LIMIT)
        cipher = document.text("cipher")
        if cipher != CIPHER:
            raise PeerError("unsupported-image", f"a layer is encrypted with {foreign(cipher)}, not with {CIPHER}")
        return cls(document.raw_bytes("hmac", size=HMAC_SIZE), _read_nonce(document))

    def encode(self) -> bytes:
        return encode_json({"cipher": CIPHER, "hmac": _base64(self.hmac), "cipheroptions": {}})


@record
class PrivateOptions:
    """What opens the layer (ocicrypt's PLBCO): 32-byte key, 16-byte first counter block, digest before encryption."""

    symkey: Secret
    nonce: bytes | None
    digest: str = ""

    @classmethod
    def parse(cls, data: bytes) -> PrivateOptions:
        """Raises `PeerError("malformed")`; its message holds no byte of `data`."""
        document = Document.parse(data, "the layer's private options", limit=_PACKET_LIMIT)
        symkey = Secret(document.raw_bytes("symkey", size=KEY_SIZE))
        return cls(symkey, _read_nonce(document), document.text("digest", ""))

    def encode(self) -> Secret:
        options = {"nonce": _base64(self.nonce)} if self.nonce is not None else {}
        return Secret(encode_json({"symkey": _base64(self.symkey.reveal()), "digest": self.digest, "cipheroptions": options}))


@record
class KeyPacket:
    """Private options wrapped under the KEK that `kid` (a `kbs://` URI) names."""

    kid: str
    wrapped: bytes
    iv: bytes
    wrap_type: str = "A256GCM"

    @classmethod
    def parse(cls, data: bytes) -> KeyPacket:
        """Reads version 1 or 2. Raises `PeerError`: "malformed", or "unsupported-image" for other providers than the KBS."""
        document = Document.parse(data, "the layer's key packet", limit=_PACKET_LIMIT)
        if document.text("version", _PACKET_VERSION) != _PACKET_VERSION:
            raise PeerError("unsupported-image", f"a layer's key packet has version {foreign(document.text('version'))}")
        if document.text("provider", "kbs") != "kbs":
            raise PeerError("unsupported-image", f"a layer's key lies with {foreign(document.text('provider'))}, not in a KBS")
        wrap_type = document.text("wrap_type")
        iv_size = {"A256GCM": NONCE_SIZE, "A256CTR": COUNTER_SIZE}.get(wrap_type)
        if iv_size is None:
            raise PeerError("unsupported-image", f"a layer's key is wrapped with {foreign(wrap_type)}")
        kid = document.text("kid")
        ResourceUri.parse(kid)
        return cls(kid, document.raw_bytes("wrapped_data"), document.raw_bytes("iv", size=iv_size), wrap_type)

    @classmethod
    def seal(cls, kid: str, options: PrivateOptions, kek: Secret) -> KeyPacket:
        """Wraps `options` under the 32-byte `kek` with AES-256-GCM and a fresh random nonce."""
        iv = Secret.random(NONCE_SIZE).reveal()
        return cls(kid, Aead(kek).encrypt(iv, options.encode().reveal(), b""), iv)

    def open(self, kek: Secret) -> PrivateOptions:
        """Unwraps. Raises `PeerError("layer-broken")` if `kek` is not the key this was wrapped under.

        A256CTR authenticates nothing by itself: the layer's HMAC and diff id do, as for every key.
        """
        if len(kek) != KEY_SIZE:
            raise PeerError("layer-broken", f"the key {foreign(self.kid)} is not {KEY_SIZE} bytes long")
        if self.wrap_type == "A256CTR":
            plain = apply_ctr(kek, self.iv, self.wrapped)
        else:
            plain = Aead(kek).decrypt(self.iv, self.wrapped, b"", code="layer-broken")
        try:
            return PrivateOptions.parse(plain)
        except PeerError as error:
            raise PeerError("layer-broken", f"the key packet for {foreign(self.kid)} does not open to a layer key") from error

    def encode(self) -> bytes:
        return encode_json(
            {
                "version": _PACKET_VERSION,
                "provider": "kbs",
                "kid": self.kid,
                "wrapped_data": _base64(self.wrapped),
                "iv": _base64(self.iv),
                "wrap_type": self.wrap_type,
                "provider_settings": {},
                "annotations": {},
            }
        )


@record
class LayerEncryption:
    """The encryption annotations of one layer: public options and every packet that a KBS may open."""

    public: PublicOptions
    packets: tuple[KeyPacket, ...]

    @classmethod
    def parse(cls, annotations: Mapping[str, str]) -> LayerEncryption:
        """Raises `PeerError`: "malformed", or "unsupported-image" when no key provider's packet is among the keys."""
        if PUBLIC_OPTIONS not in annotations:
            raise PeerError("malformed", "an encrypted layer has no public options")
        public = PublicOptions.parse(decode_base64(annotations[PUBLIC_OPTIONS], "the layer's public options"))
        packets: list[KeyPacket] = []
        for name in sorted(annotations):
            if name.startswith(PROVIDER_PREFIX):
                items = annotations[name].split(",")
                if len(packets) + len(items) > _PACKETS_LIMIT:
                    raise PeerError("malformed", f"a layer has more than {_PACKETS_LIMIT} key packets")
                packets += [KeyPacket.parse(decode_base64(item, "the layer's key packet")) for item in items]
        if not packets:
            schemes = ", ".join(foreign(name.removeprefix(KEYS_PREFIX)) for name in annotations if name.startswith(KEYS_PREFIX))
            raise PeerError("unsupported-image", f"no layer key for a KBS; the layer's key schemes are: {schemes or 'none'}")
        return cls(public, tuple(packets))

    def to_annotations(self) -> dict[str, str]:
        """As the descriptor carries them, under the provider name `attestation-agent`."""
        return {
            PROVIDER: ",".join(_base64(packet.encode()) for packet in self.packets),
            PUBLIC_OPTIONS: _base64(self.public.encode()),
        }


@record
class LayerKey:
    """All that decrypting one layer takes, public and private parts joined."""

    symkey: Secret
    nonce: bytes
    hmac: bytes
    plain_digest: Digest | None = field(default=None)  # of the compressed layer; informative, the diff id decides

    @classmethod
    def join(cls, public: PublicOptions, private: PrivateOptions) -> LayerKey:
        """Raises `PeerError("layer-broken")` when neither part has the nonce."""
        nonce = public.nonce or private.nonce
        if nonce is None:
            raise PeerError("layer-broken", "the layer's encryption options have no nonce")
        try:
            plain_digest = Digest.parse(private.digest)
        except PeerError:
            plain_digest = None
        return cls(private.symkey, nonce, public.hmac, plain_digest)


def _read_nonce(document: Document) -> bytes | None:
    options = document.document("cipheroptions")
    return options.raw_bytes("nonce", size=COUNTER_SIZE) if options.has("nonce") else None


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
