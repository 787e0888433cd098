"""The one door to an image that may run: what is loaded is trusted, and it is loaded in order.

    signature policy -> root manifest -> (platform manifest) -> signatures -> config -> layers

Modelled on python-tuf's `TrustedMetadataSet`: each step takes bytes as they came from outside, checks them against
what was loaded before, and keeps the parsed value only if they hold. Two kinds of failure: a step out of order is a
bug of ours (`RuntimeError`), bytes that do not hold are the peer's doing (`PeerError`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from enclave_cc.enclave.image import signature_policy
from enclave_cc.errors import PeerError, foreign
from enclave_cc.record import record
from enclave_cc.wire.oci import media_type as media
from enclave_cc.wire.oci.config import ImageConfig
from enclave_cc.wire.oci.digest import Digest
from enclave_cc.wire.oci.manifest import LINUX_AMD64, Descriptor, Index, Manifest, Platform, parse_manifest
from enclave_cc.wire.oci.reference import Reference
from enclave_cc.wire.oci.signature import Signature
from enclave_cc.wire.oci.signature_policy import SignaturePolicy


@record
class TrustedLayer:
    """A layer that the signed manifest lists, and the digest of its tar stream that the signed config gives."""

    descriptor: Descriptor
    kind: media.LayerType
    diff_id: Digest


class TrustedImage:
    """Loads one image for one platform. Use each `load_*` once, in the order of the module's head."""

    def __init__(self, image: Reference, platform: Platform = LINUX_AMD64) -> None:
        self.reference = image.with_default_tag()
        self._platform = platform
        self._policy: SignaturePolicy | None = None
        self._index_digest: Digest | None = None
        self._selected: Descriptor | None = None  # of the index: where the platform manifest lies
        self._manifest: Manifest | None = None
        self._manifest_digest: Digest | None = None
        self._approval: signature_policy.Approval | None = None
        self._config: ImageConfig | None = None

    def load_policy(self, data: bytes) -> SignaturePolicy:
        """The data owner's signature policy, out of the KBS. Raises `PeerError`: "malformed", "policy-invalid"."""
        _in_order(self._policy is None)
        self._policy = SignaturePolicy.parse(data)
        return self._policy

    def load_root(self, data: bytes, media_type: str) -> Descriptor | None:
        """What the reference points to: a manifest, or an index; then the descriptor to fetch next is returned.

        1. Its digest is the one the reference names, if it names one.
        2. It parses as what it is served as.
        3. An index has a manifest for the platform.

        Nothing of it is trusted before `load_signatures`.
        """
        _in_order(self._policy is not None and self._manifest is None and self._selected is None)
        digest = Digest.of(data)
        if self.reference.digest is not None:
            self.reference.digest.check(data, f"the manifest of {self.reference}")  # 1
        found = parse_manifest(data, media_type)  # 2
        if isinstance(found, Index):
            self._index_digest = digest
            self._selected = found.select(self._platform)  # 3
            return self._selected
        self._set_manifest(found, digest)
        return None

    def load_platform(self, data: bytes) -> None:
        """The manifest that the index selected.

        1. Its digest and size are those of its descriptor in the index.
        2. It is a manifest, not another index.
        """
        selected = self._selected
        _in_order(selected is not None and self._manifest is None)
        assert selected is not None  # noqa: S101  (said so by the line above; for the type checker)
        _check_blob(selected, data, "the platform's manifest")  # 1
        found = parse_manifest(data, selected.media_type)
        if not isinstance(found, Manifest):  # 2
            raise PeerError("unsupported-image", f"{self.reference} is an index of indexes")
        self._set_manifest(found, selected.digest)

    @property
    def signed_digests(self) -> tuple[Digest, ...]:
        """What a signature may be over: the index (if there is one), or the platform's manifest."""
        _in_order(self._manifest_digest is not None)
        return tuple(digest for digest in (self._index_digest, self._manifest_digest) if digest is not None)

    @property
    def needs_signatures(self) -> bool:
        """Whether the policy asks for any; if not, `load_signatures` takes an empty list."""
        _in_order(self._policy is not None)
        return self._policy is not None and signature_policy.asks_for_signatures(self._policy, self.reference)

    def load_signatures(self, signatures: Sequence[Signature], fetch_key: Callable[[str], bytes]) -> signature_policy.Approval:
        """Holds the policy against the signatures; see `signature_policy.check_signatures` for checks and errors.

        May be called again with more signatures after it raised.
        """
        _in_order(self._manifest is not None and self._approval is None)
        policy, digests = self._policy, self.signed_digests
        assert policy is not None  # noqa: S101
        self._approval = signature_policy.check_signatures(policy, self.reference, digests, signatures, fetch_key)
        return self._approval

    @property
    def manifest_digest(self) -> Digest:
        """Of the platform's manifest, approved."""
        _in_order(self._approval is not None and self._manifest_digest is not None)
        assert self._manifest_digest is not None  # noqa: S101
        return self._manifest_digest

    @property
    def config_descriptor(self) -> Descriptor:
        """Where the config lies. Raises `PeerError("unsupported-image")` if the image is an artifact of another kind."""
        manifest = self._approved()
        if manifest.config.media_type not in media.CONFIGS:
            raise PeerError("unsupported-image", f"{self.reference} has a config of type {foreign(manifest.config.media_type)}")
        return manifest.config

    def load_config(self, data: bytes) -> ImageConfig:
        """The image configuration.

        1. Its digest and size are those of the approved manifest.
        2. It is for the platform.
        3. It has one diff id for each layer.
        """
        manifest = self._approved()
        _in_order(self._config is None)
        _check_blob(self.config_descriptor, data, "the image configuration")  # 1
        config = ImageConfig.parse(data)
        if (config.os, config.architecture) != (self._platform.os, self._platform.architecture):  # 2
            raise PeerError("unsupported-image", f"the image is for {foreign(config.platform)}, not for {self._platform}")
        if len(config.diff_ids) != len(manifest.layers):  # 3
            raise PeerError("malformed", f"{len(config.diff_ids)} diff ids for {len(manifest.layers)} layers")
        self._config = config
        return config

    @property
    def layers(self) -> tuple[TrustedLayer, ...]:
        """From the lowest to the topmost. Raises `PeerError("unsupported-image")` for a layer of another kind than tar."""
        manifest, config = self._approved(), self._config
        _in_order(config is not None)
        assert config is not None  # noqa: S101
        pairs = zip(manifest.layers, config.diff_ids, strict=True)
        return tuple(TrustedLayer(layer, media.LayerType.parse(layer.media_type), diff_id) for layer, diff_id in pairs)

    def _set_manifest(self, manifest: Manifest, digest: Digest) -> None:
        self._manifest, self._manifest_digest = manifest, digest

    def _approved(self) -> Manifest:
        _in_order(self._manifest is not None and self._approval is not None)
        assert self._manifest is not None  # noqa: S101
        return self._manifest


def _check_blob(descriptor: Descriptor, data: bytes, name: str) -> None:
    if len(data) != descriptor.size:
        raise PeerError("digest-mismatch", f"{name} has {len(data)} bytes, not {descriptor.size}")
    descriptor.digest.check(data, name)


def _in_order(condition: bool) -> None:
    if not condition:
        raise RuntimeError("a step of loading the image out of order")
