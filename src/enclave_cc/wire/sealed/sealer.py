"""Seals the blocks of one new blob. Pure: the bytes go to the caller."""

from __future__ import annotations

from enclave_cc.crypto.aead import Aead
from enclave_cc.crypto.secret import Secret
from enclave_cc.wire.sealed import block
from enclave_cc.wire.sealed.descriptor import BlobDescriptor


class BlockSealer:
    """A random key and id, and the running index: a block cannot be sealed twice under one nonce.

    Not thread-safe. After the last block nothing more is sealed.
    """

    __slots__ = ("_aead", "_index", "_key", "_plain_size", "_prefix", "block_size", "id", "role")

    def __init__(self, role: block.Role, *, block_size: int = block.BLOCK_SIZE) -> None:
        self.role = role
        self.block_size = block_size
        self.id = Secret.random(block.ID_SIZE).reveal()
        self._key = Secret.random(block.KEY_SIZE)
        self._aead: Aead | None = Aead(self._key)
        self._prefix = block.aad_prefix(role, self.id)
        self._index = 0
        self._plain_size = 0

    def seal_into(self, plain: bytes | bytearray | memoryview, out: bytearray | memoryview, *, last: bool) -> int:
        """Seals the next block into `out` (exactly plain + 16 bytes); every block but the last is whole."""
        size = len(plain)
        if self._aead is None or (size != self.block_size and not last) or size > self.block_size:
            raise ValueError("a blob's blocks are whole but the last, and end with it")
        aad = block.make_aad(self._prefix, self._index, last=last)
        written = self._aead.encrypt_into(block.make_nonce(self._index), plain, aad, out)
        self._index += 1
        self._plain_size += size
        if last:
            self._aead = None
        return written

    def finish(self) -> BlobDescriptor:
        """The blob's descriptor, once its last block is sealed."""
        if self._aead is not None:
            raise ValueError("the last block is not sealed yet")
        return BlobDescriptor(self.id, self._key, self.role, self.block_size, self._plain_size)
