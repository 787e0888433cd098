"""The node cache: sealed layers and merged trees by content, shared by all agents of the node.

A hit replaces download and decryption, never authorization: the caller checks signatures and asks for keys each time.
Everything on disk is the host's to change; what was changed is a miss here, or a block that does not open later.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from enclave_cc.crypto import kdf
from enclave_cc.crypto.aead import NONCE_SIZE, Aead
from enclave_cc.crypto.secret import Secret
from enclave_cc.enclave.rootfs import cache_files
from enclave_cc.enclave.rootfs.layer import Layer
from enclave_cc.errors import EnvironmentFault, PeerError
from enclave_cc.wire.sealed.block import Role
from enclave_cc.wire.sealed.descriptor import BlobDescriptor
from enclave_cc.wire.sealed.rootfs import RootfsDescriptor

ENTRIES_FORMAT = 1  # of rootfs/entries.py, as in its magic
METADATA_FORMAT = 1  # of what rootfs/erofs writes; another number makes old trees misses
MAX_ENTRY_SIZE = 1 << 30

_VERSION = b"\x01"
_CONTEXT = b"enclave-cc/cache/1"

LayerName = tuple[str, str]  # digest, diff_id


class NodeCache:
    """The cache at `directory`, for an agent whose 16-byte seal key (EGETKEY) is `seal_key`.

    `container_id`: what this view looks up or stores is pinned for that container, so that collecting spares it;
    see `for_container`. `log` is told of entries that were broken. Safe for many threads and processes.
    Raises `EnvironmentFault` where the file system fails.
    """

    def __init__(
        self,
        directory: Path,
        seal_key: Secret,
        *,
        container_id: str | None = None,
        log: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.directory = directory
        self._seal_key = seal_key
        self._container_id = container_id
        self._log = log
        self._name_key = kdf.hkdf_sha256(seal_key, salt=b"", info=_CONTEXT + b"/name", size=32)
        self._aead = Aead(kdf.hkdf_sha256(seal_key, salt=b"", info=_CONTEXT + b"/entry", size=32))
        if container_id is not None:
            cache_files.lease_path(directory, container_id)
        cache_files.make_directories(directory)

    def for_container(self, container_id: str) -> NodeCache:
        """A view that pins for `container_id` (host-authored). Raises `PeerError` if that is no plain name."""
        return NodeCache(self.directory, self._seal_key, container_id=container_id, log=self._log)

    def release(self, container_id: str) -> None:
        """The container is gone; its blobs may be collected."""
        cache_files.lease_path(self.directory, container_id).unlink(missing_ok=True)

    def lookup_layer(self, digest: str, diff_id: str) -> Layer | None:
        """The layer if the cache has it whole; pinned."""
        name = self._name(_layer_subject(digest, diff_id))
        found = self._read(name)
        if found is None:
            return None
        document, encoded_entries = found
        try:
            descriptor = BlobDescriptor.from_json(document.get("layer"))
            if descriptor.role is not Role.LAYER:
                raise PeerError("malformed", "a layer's index entry names another blob")
        except PeerError as error:
            self._miss(name, str(error))
            return None
        if not self._pin([descriptor]):
            self._miss(name, f"blob {descriptor.id.hex()} is gone or has another size")
            return None
        return Layer(digest, diff_id, descriptor, encoded_entries)

    def store_layer(self, layer: Layer) -> None:
        """Remembers a layer whose blob lies in this cache; pinned."""
        self._pin_stored([layer.descriptor])
        subject = _layer_subject(layer.digest, layer.diff_id)
        self._write(self._name(subject), {"layer": layer.descriptor.to_json()}, layer.encoded_entries)

    def get_layer(self, digest: str, diff_id: str, ingest: Callable[[], Layer], *, patience: float) -> Layer:
        """`lookup_layer`, or else `ingest` and `store_layer`, so that agents who want the same layer fetch it once.

        Who has waited `patience` seconds for another's ingestion does his own: both are right, one is in vain.
        """
        if (layer := self.lookup_layer(digest, diff_id)) is not None:
            return layer
        lock = self.directory / cache_files.TEMPORARY / (self._name(_layer_subject(digest, diff_id)) + ".lock")
        try:
            with cache_files.hold_lock(lock, fcntl.LOCK_EX, patience=patience):
                layer = self.lookup_layer(digest, diff_id)
                return layer if layer is not None else self._ingest(ingest)
        except EnvironmentFault as error:
            if error.code != "deadline" or str(lock) not in error.what:
                raise
        return self._ingest(ingest)

    def lookup_rootfs(self, layers: Sequence[LayerName]) -> RootfsDescriptor | None:
        """The merged tree of these layers, (digest, diff_id) bottom first, if all of it is here and whole; pinned."""
        name = self._name(_rootfs_subject(layers))
        found = self._read(name)
        if found is None:
            return None
        try:
            rootfs = RootfsDescriptor.from_json(found[0].get("rootfs"))
        except PeerError as error:
            self._miss(name, str(error))
            return None
        if not self._pin(rootfs.blobs):
            self._miss(name, "a blob of the tree is gone or has another size")
            return None
        return rootfs

    def store_rootfs(self, layers: Sequence[LayerName], rootfs: RootfsDescriptor) -> None:
        """Remembers the merged tree of these layers; pinned."""
        self._pin_stored(rootfs.blobs)
        self._write(self._name(_rootfs_subject(layers)), {"rootfs": rootfs.to_json()}, b"")

    def collect(self, max_bytes: int) -> int:
        """Removes what was not used for longest and is not pinned, down to `max_bytes`; the bytes freed."""
        return cache_files.collect(self.directory, max_bytes)

    def _ingest(self, ingest: Callable[[], Layer]) -> Layer:
        layer = ingest()
        self.store_layer(layer)
        return layer

    def _pin(self, blobs: Sequence[BlobDescriptor]) -> bool:
        files = [(blob.file_name, blob.sealed_size) for blob in blobs]
        if self._container_id is None:
            return cache_files.are_present(self.directory, files)
        return cache_files.pin(self.directory, self._container_id, files)

    def _pin_stored(self, blobs: Sequence[BlobDescriptor]) -> None:
        if not self._pin(blobs):
            raise EnvironmentFault("environment", f"a blob just written to {self.directory} is gone", "Run it again.")

    def _name(self, subject: bytes) -> str:
        return hmac.digest(self._name_key.reveal(), subject, hashlib.sha256).hex()

    def _read(self, name: str) -> tuple[Mapping[str, object], bytes] | None:
        """JSON and encoded entries of an index entry, or None if there is none that is ours and whole."""
        path = self.directory / cache_files.INDEX / name
        try:
            sealed = cache_files.read_entry(path, MAX_ENTRY_SIZE + 1)
        except FileNotFoundError:
            return None
        except OSError as error:
            self._miss(name, str(error.strerror))
            return None
        head = len(_VERSION) + NONCE_SIZE
        if len(sealed) > MAX_ENTRY_SIZE or sealed[:1] != _VERSION:
            self._miss(name, "it has another version or size")
            return None
        try:
            plain = self._aead.decrypt(sealed[1:head], memoryview(sealed)[head:], _CONTEXT + bytes.fromhex(name))
        except PeerError:
            self._miss(name, "it does not authenticate")
            return None
        # Ours from here on: the same build of the agent on this CPU wrote it, under this name.
        end = 4 + int.from_bytes(plain[:4], "big")
        document = json.loads(plain[4:end])
        with suppress(OSError):
            os.utime(path)
        return document, plain[end:]

    def _write(self, name: str, document: Mapping[str, object], encoded_entries: bytes) -> None:
        text = json.dumps(document, separators=(",", ":")).encode()
        plain = b"".join((len(text).to_bytes(4, "big"), text, encoded_entries))
        nonce = os.urandom(NONCE_SIZE)
        sealed = self._aead.encrypt(nonce, plain, _CONTEXT + bytes.fromhex(name))
        cache_files.write_entry(self.directory, name, b"".join((_VERSION, nonce, sealed)))

    def _miss(self, name: str, why: str) -> None:
        self._log(f"index entry {name[:16]} is not used and is removed: {why}")
        with suppress(OSError):
            (self.directory / cache_files.INDEX / name).unlink()


def _layer_subject(digest: str, diff_id: str) -> bytes:
    return f"layer\0{ENTRIES_FORMAT}\0{digest}\0{diff_id}".encode()


def _rootfs_subject(layers: Sequence[LayerName]) -> bytes:
    return "\0".join((f"rootfs\0{METADATA_FORMAT}", *(part for layer in layers for part in layer))).encode()
