"""What opens a blob (docs/formats/sealed.md, section Descriptor).

The JSON form carries the key: it travels inside handover messages and sealed index entries only.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from enclave_cc.crypto.secret import Secret
from enclave_cc.errors import PeerError, foreign
from enclave_cc.record import record
from enclave_cc.wire.sealed import block

_HEX = re.compile(r"(?:[0-9a-f]{2})*")
_MEMBERS = frozenset({"id", "key", "role", "block_size", "plain_size"})


@record
class BlobDescriptor:
    """Id (16 bytes, public), key (32 bytes) and shape of one blob. Raises `PeerError` if it is out of bounds."""

    id: bytes
    key: Secret
    role: block.Role
    block_size: int
    plain_size: int

    def __post_init__(self) -> None:
        if len(self.id) != block.ID_SIZE or len(self.key) != block.KEY_SIZE:
            raise PeerError("malformed", "a blob descriptor has an id or key of the wrong size")
        size = self.block_size
        if not block.MIN_BLOCK_SIZE <= size <= block.MAX_BLOCK_SIZE or size & (size - 1):
            raise PeerError("malformed", f"a blob descriptor has block size {size}")
        if not 0 <= self.plain_size <= block.MAX_PLAIN_SIZE:
            raise PeerError("malformed", f"a blob descriptor has plain size {self.plain_size}")

    @property
    def file_name(self) -> str:
        return f"{self.id.hex()}.sealed"

    @property
    def block_count(self) -> int:
        return block.count_blocks(self.plain_size, self.block_size)

    @property
    def sealed_size(self) -> int:
        """Bytes the blob's file must have."""
        return block.sealed_size(self.plain_size, self.block_size)

    def plain_block_size(self, index: int) -> int:
        """Plain bytes of block `index`; only the last block is shorter."""
        return min(self.block_size, self.plain_size - index * self.block_size)

    def to_json(self) -> dict[str, str | int]:
        """Holds the key: seal or encrypt what you make of it."""
        return {
            "id": self.id.hex(),
            "key": self.key.reveal().hex(),
            "role": self.role.name.lower(),
            "block_size": self.block_size,
            "plain_size": self.plain_size,
        }

    @classmethod
    def from_json(cls, value: object) -> BlobDescriptor:
        """Raises `PeerError("malformed")` for anything but the documented members and ranges."""
        if not isinstance(value, Mapping) or set(value) != _MEMBERS:
            raise PeerError("malformed", "a blob descriptor lacks members or has unknown ones")
        role = value["role"]
        if role not in ("layer", "metadata", "spill"):
            raise PeerError("malformed", f"a blob descriptor has role {foreign(role)}")
        return cls(
            id=_read_hex(value["id"]),
            key=Secret(_read_hex(value["key"])),
            role=block.Role[role.upper()],
            block_size=_read_integer(value["block_size"]),
            plain_size=_read_integer(value["plain_size"]),
        )


def _read_hex(value: object) -> bytes:
    if not isinstance(value, str) or not _HEX.fullmatch(value):
        raise PeerError("malformed", "a blob descriptor's id or key is not lower-case hex")
    return bytes.fromhex(value)


def _read_integer(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise PeerError("malformed", "a blob descriptor's size is not an integer")
    return value
