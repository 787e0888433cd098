"""Pulls an image: authorization first and each time, then bytes, from the node's cache where it has them.

KBS: signature policy -> registry: manifest, signatures, config -> KBS: a key per encrypted layer
-> cache: the merged tree, or its layers -> registry: what is missing, layers in parallel
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence

from enclave_cc.enclave.image import layer_key
from enclave_cc.enclave.image.layer import ingest_layer
from enclave_cc.enclave.image.layer_key import ResourceSource
from enclave_cc.enclave.image.trusted_image import TrustedImage, TrustedLayer
from enclave_cc.enclave.rootfs.build import build_rootfs
from enclave_cc.enclave.rootfs.cache import NodeCache
from enclave_cc.enclave.rootfs.layer import Layer
from enclave_cc.errors import EnclaveCcError, EnvironmentFault, PeerError
from enclave_cc.record import record, replace
from enclave_cc.transport import signature_store
from enclave_cc.transport.registry import Registry
from enclave_cc.transport.registry_config import RegistryConfig
from enclave_cc.wire.oci.auth import AuthFile, Credentials
from enclave_cc.wire.oci.config import CONFIG_LIMIT, ImageConfig
from enclave_cc.wire.oci.digest import Digest
from enclave_cc.wire.oci.encryption import LayerKey
from enclave_cc.wire.oci.reference import Reference
from enclave_cc.wire.oci.signature import Signature
from enclave_cc.wire.sealed.rootfs import RootfsDescriptor

# digest, bytes done, bytes in all, stage: "waiting", "pulling", "cached" or "done"
Progress = Callable[[str, int, int, str], None]


@record
class ResourceUris:
    """Where the data owner's policy and registry credentials lie in the KBS; fixed in what is measured."""

    signature_policy: str = "kbs:///default/security-policy/default"
    registry_credential: str = "kbs:///default/credential/default"


@record
class PulledImage:
    """An image whose signatures, keys and contents all held. `signers` are the key ids that the policy asked for."""

    reference: Reference
    manifest_digest: Digest
    config: ImageConfig
    rootfs: RootfsDescriptor
    signers: tuple[str, ...]


def pull_image(
    reference: Reference,
    *,
    resources: ResourceSource,
    registries: RegistryConfig,
    cache: NodeCache,
    progress: Progress,
    deadline: float,
    uris: ResourceUris | None = None,
) -> PulledImage:
    """Pulls `reference` (host-authored) within `deadline` seconds.

    Raises what the KBS's client, the registry, `TrustedImage`, `unlock_layer` and `ingest_layer` raise, and
    `PeerError("signature-policy-missing")` when the data owner has set no policy, "deadline" when time is up.
    """
    until = time.monotonic() + deadline
    uris = uris or ResourceUris()
    image = TrustedImage(reference)
    image.load_policy(_fetch_policy(resources, uris.signature_policy))
    registry, location = _open_root(image, registries, _CredentialLookup(resources, uris.registry_credential, registries))
    try:
        signers = _load_signatures(image, registry, location.repository, resources)
        config = _load_config(image, registry, location.repository)
        layers = image.layers
        names = _unlock(layers, resources)
        rootfs = cache.lookup_rootfs([(name, layer.diff_id) for layer, (name, _) in zip(layers, names, strict=True)])
        if rootfs is None:
            pull = _LayerPull(registry, location.repository, cache, progress, until)
            rootfs = build_rootfs(cache, pull.run(layers, names, registries.concurrency))
        else:
            for layer in layers:
                progress(layer.descriptor.digest, layer.descriptor.size, layer.descriptor.size, "cached")
        return PulledImage(image.reference, image.manifest_digest, config, rootfs, signers)
    finally:
        registry.close()


def _fetch_policy(resources: ResourceSource, uri: str) -> bytes:
    try:
        return resources.get(uri)
    except PeerError as error:
        if error.code == "key-missing":
            raise PeerError("signature-policy-missing", f"the KBS has no signature policy under {uri}") from error
        raise


class _CredentialLookup:
    """Registry credentials out of the KBS, asked for once, and only if a registry wants any.

    How a registry is reached is HOST-AUTHORED: a credential goes only where the host cannot read it, unless the owner
    says otherwise in auth.json. Plain HTTP gets none; instead of the host's CAs the system's alone are believed.
    """

    def __init__(self, resources: ResourceSource, uri: str, registries: RegistryConfig) -> None:
        self._resources, self._uri, self._registries = resources, uri, registries
        self._lock = threading.Lock()
        self._file: AuthFile | None = None

    def connect(self, image: Reference) -> Registry:
        """The registry of `image`."""
        host = image.registry
        own_cas = self._registries.ca_pem is None or host in self._registries.insecure or not self._is_secret(image)
        return self._registries.connect(host, lambda: self._find_for(image), own_cas=own_cas)

    def _is_secret(self, image: Reference) -> bool:
        found = self._find(image)
        return found is not None and not found.readable

    def _find_for(self, image: Reference) -> Credentials | None:
        if image.registry in self._registries.insecure and self._is_secret(image):
            raise PeerError(
                "registry-denied",
                f"{image.registry} wants a credential, and the node has it spoken to in plain HTTP",
                f"Reach it by TLS; or the owner writes the entry of auth.json as http://{image.registry}, for the node to see.",
            )
        return self._find(image)

    def _find(self, image: Reference) -> Credentials | None:
        with self._lock:
            if self._file is None:
                try:
                    self._file = AuthFile.parse(self._resources.get(self._uri))
                except PeerError as error:
                    if error.code != "key-missing":
                        raise
                    self._file = AuthFile({})
            return self._file.find(image)


def _open_root(image: TrustedImage, registries: RegistryConfig, credentials: _CredentialLookup) -> tuple[Registry, Reference]:
    """Loads the root manifest (and the platform's) from the first location that has it: mirrors, then the registry."""
    failure: EnclaveCcError | None = None
    for location in registries.locations(image.reference):
        registry = credentials.connect(location)
        try:
            data, kind, _ = registry.get_manifest(location.repository, location.target)
        except (PeerError, EnvironmentFault) as error:
            registry.close()
            failure = error  # the last one is the registry's own, which is what the reader knows
            continue
        except BaseException:
            registry.close()
            raise
        try:
            selected = image.load_root(data, kind)
            if selected is not None:
                image.load_platform(registry.get_manifest(location.repository, selected.digest)[0])
        except BaseException:
            registry.close()
            raise
        return registry, location
    raise failure or PeerError("image-not-found", f"there is no place to look for {image.reference}")


def _load_signatures(image: TrustedImage, registry: Registry, repository: str, resources: ResourceSource) -> tuple[str, ...]:
    """Holds the policy against what is found. Each place where signatures may lie is asked only if those before do not suffice."""
    if not image.needs_signatures:
        return image.load_signatures([], resources.get).key_ids
    found: list[Signature] = []
    failure = PeerError("signature-missing", f"{image.reference} is not signed")
    for fetch in (signature_store.fetch_tagged, signature_store.fetch_bundles):
        for digest in image.signed_digests:
            more = fetch(registry, repository, digest)
            if more:
                found += more
                try:
                    return image.load_signatures(found, resources.get).key_ids
                except PeerError as error:
                    failure = error
    raise failure


def _load_config(image: TrustedImage, registry: Registry, repository: str) -> ImageConfig:
    descriptor = image.config_descriptor
    return image.load_config(registry.get_blob(repository, descriptor.digest, limit=min(descriptor.size, CONFIG_LIMIT)))


def _unlock(layers: Sequence[TrustedLayer], resources: ResourceSource) -> list[tuple[str, LayerKey | None]]:
    """Asks the KBS for the key of each encrypted layer; what the cache calls it, and the key."""
    keys = layer_key.KeyRing(resources)
    unlocked = []
    for layer in layers:
        key = layer_key.unlock_layer(layer.descriptor, keys) if layer.kind.encrypted else None
        unlocked.append((layer_key.name_in_cache(layer.descriptor, key), key))
    return unlocked


class _LayerPull:
    """The layers of one pull, several at once. The first failure stops them all."""

    def __init__(self, registry: Registry, repository: str, cache: NodeCache, progress: Progress, until: float) -> None:
        self._registry, self._repository = registry, repository
        self._cache, self._progress, self._until = cache, progress, until
        self._failed = threading.Event()

    def run(self, layers: Sequence[TrustedLayer], names: Sequence[tuple[str, LayerKey | None]], concurrency: int) -> list[Layer]:
        """All layers, in their order; each verified, sealed and in the cache."""
        from concurrent.futures import ThreadPoolExecutor  # a cached start does without

        for layer in layers:
            self._progress(layer.descriptor.digest, 0, layer.descriptor.size, "waiting")
        with ThreadPoolExecutor(concurrency, thread_name_prefix="layer") as pool:
            futures = [pool.submit(self._fetch, layer, *name) for layer, name in zip(layers, names, strict=True)]
            errors = [error for future in futures if (error := future.exception()) is not None]
        for error in errors:
            if not isinstance(error, _Stopped):
                raise error
        return [future.result() for future in futures]

    def _fetch(self, layer: TrustedLayer, name: str, key: LayerKey | None) -> Layer:
        try:
            self._check()
            return self._fetch_or_find(layer, name, key)
        except BaseException:
            self._failed.set()
            raise

    def _fetch_or_find(self, layer: TrustedLayer, name: str, key: LayerKey | None) -> Layer:
        digest, size = layer.descriptor.digest, layer.descriptor.size
        stage = "cached"

        def ingest() -> Layer:
            nonlocal stage
            stage = "done"
            found = ingest_layer(
                self._read(digest, size),
                digest=digest,
                size=size,
                diff_id=layer.diff_id,
                media_type=layer.descriptor.media_type,
                cipher=layer_key.make_cipher(key) if key is not None else None,
                directory=self._cache.directory,
                progress=lambda done: self._progress(digest, done, size, "pulling"),
            )
            return replace(found, digest=name)

        patience = max(self._until - time.monotonic(), 0)
        found = self._cache.get_layer(name, layer.diff_id, ingest, patience=patience)
        self._progress(digest, size, size, stage)
        return found

    def _read(self, digest: Digest, size: int) -> Iterator[bytes]:
        for chunk in self._registry.open_blob(self._repository, digest, size, until=self._until):
            self._check()
            yield chunk

    def _check(self) -> None:
        if self._failed.is_set():
            raise _Stopped


class _Stopped(Exception):
    """Another layer failed."""
