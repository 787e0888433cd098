"""Layers -> merged tree -> EROFS metadata -> rootfs descriptor."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

from enclave_cc.enclave.rootfs.cache import NodeCache
from enclave_cc.enclave.rootfs.erofs.writer import write_metadata
from enclave_cc.enclave.rootfs.layer import Layer
from enclave_cc.enclave.rootfs.sealed_reader import SealedReader
from enclave_cc.enclave.rootfs.sealed_writer import SealedWriter
from enclave_cc.enclave.rootfs.tree import merge
from enclave_cc.wire.sealed.block import Role
from enclave_cc.wire.sealed.descriptor import BlobDescriptor
from enclave_cc.wire.sealed.rootfs import RootfsDescriptor


def build_rootfs(cache: NodeCache, layers: Sequence[Layer]) -> RootfsDescriptor:
    """The root file system of `layers`, bottom first, all of them in `cache`: from there, or built and stored there.

    Raises `PeerError` as `merge` and `write_metadata` do ("layer-broken", "unsupported-image"), "seal-broken" if a layer
    that has to be read again does not open, and `EnvironmentFault` where the cache's file system fails.
    """
    names = [(layer.digest, layer.diff_id) for layer in layers]
    if (known := cache.lookup_rootfs(names)) is not None:
        return known
    blobs = [layer.descriptor for layer in layers]
    tree = merge([layer.entries for layer in layers])
    with ExitStack() as stack:
        spill = _Spill(cache, blobs, stack)
        metadata = stack.enter_context(SealedWriter(cache.directory, Role.METADATA))
        metadata.write(write_metadata(tree, [blob.plain_size for blob in blobs], spill=spill))
        spilled = spill.finish()
        rootfs = RootfsDescriptor(metadata.finish(), (*blobs, *spilled))
    cache.store_rootfs(names, rootfs)
    return rootfs


class _Spill:
    """Reads layers and writes the spill blob, both only when the metadata writer asks."""

    def __init__(self, cache: NodeCache, layers: Sequence[BlobDescriptor], stack: ExitStack) -> None:
        self._directory = cache.directory
        self._layers = layers
        self._stack = stack
        self._readers: dict[int, SealedReader] = {}
        self._writer: SealedWriter | None = None

    def read_layer(self, layer: int, offset: int, length: int) -> bytes:
        reader = self._readers.get(layer)
        if reader is None:
            reader = self._stack.enter_context(SealedReader(self._directory, self._layers[layer]))
            self._readers[layer] = reader
        return reader.read(offset, length)

    def write(self, data: bytes) -> None:
        if self._writer is None:
            self._writer = self._stack.enter_context(SealedWriter(self._directory, Role.SPILL))
        self._writer.write(data)

    def finish(self) -> tuple[BlobDescriptor, ...]:
        return () if self._writer is None else (self._writer.finish(),)
