"""Opens sealed blocks. Pure: the bytes come from the caller."""

from __future__ import annotations

from enclave_cc.crypto.aead import TAG_SIZE, Aead
from enclave_cc.errors import PeerError
from enclave_cc.wire.sealed import block
from enclave_cc.wire.sealed.descriptor import BlobDescriptor

Buffer = bytes | bytearray | memoryview


class BlockOpener:
    """Opens the blocks of one blob. Safe to use from many threads; the cipher releases the GIL."""

    __slots__ = ("_aead", "_last", "_prefix", "descriptor", "stride")

    def __init__(self, descriptor: BlobDescriptor) -> None:
        self.descriptor = descriptor
        self.stride = descriptor.block_size + TAG_SIZE
        self._aead = Aead(descriptor.key)
        self._prefix = block.aad_prefix(descriptor.role, descriptor.id)
        self._last = descriptor.block_count - 1

    def sealed_block_size(self, index: int) -> int:
        """Bytes of block `index` in the file, tag included."""
        return self.descriptor.plain_block_size(index) + TAG_SIZE

    def open(self, index: int, sealed: Buffer) -> bytes:
        """Plaintext of block `index`. Raises `PeerError("seal-broken")` naming blob and block."""
        # 1. the blob has this block  2. it is whole  3. it authenticates as this block of this blob
        self._check_shape(index, sealed)
        try:
            return self._aead.decrypt(
                block.make_nonce(index), sealed, block.make_aad(self._prefix, index, last=index == self._last)
            )
        except PeerError as error:
            raise broken_block(self.descriptor, index, "does not authenticate") from error

    def open_into(self, index: int, sealed: Buffer, out: bytearray | memoryview) -> int:
        """As `open`, into `out`, which has exactly the block's plain size; returns that size."""
        self._check_shape(index, sealed)
        try:
            return self._aead.decrypt_into(
                block.make_nonce(index), sealed, block.make_aad(self._prefix, index, last=index == self._last), out
            )
        except PeerError as error:
            raise broken_block(self.descriptor, index, "does not authenticate") from error

    def _check_shape(self, index: int, sealed: Buffer) -> None:
        if not 0 <= index <= self._last:  # 1
            raise broken_block(self.descriptor, index, "is beyond the blob's end")
        if len(sealed) != self.sealed_block_size(index):  # 2
            raise broken_block(self.descriptor, index, "is cut short")


def open_block(descriptor: BlobDescriptor, index: int, sealed: Buffer) -> bytes:
    """One block of one blob; for many, keep a `BlockOpener`. Raises `PeerError("seal-broken")`."""
    return BlockOpener(descriptor).open(index, sealed)


def broken_block(descriptor: BlobDescriptor, index: int, how: str) -> PeerError:
    """The error that names blob and block; both are public."""
    return PeerError("seal-broken", f"block {index} of blob {descriptor.id.hex()} ({descriptor.role.name.lower()}) {how}")
