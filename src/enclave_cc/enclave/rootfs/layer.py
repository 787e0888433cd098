"""One image layer as the agent holds it: verified, sealed, and its tree entries."""

from __future__ import annotations

from enclave_cc.enclave.rootfs.entries import Entry, decode_entries
from enclave_cc.record import record
from enclave_cc.wire.sealed.descriptor import BlobDescriptor


@record
class Layer:
    """Exists only for a layer of which digest, HMAC and diffID held. `digest` and `diff_id` are "sha256:..."."""

    digest: str
    diff_id: str
    descriptor: BlobDescriptor
    encoded_entries: bytes  # a cached rootfs needs no entries, so they are decoded on demand

    @property
    def entries(self) -> list[Entry]:
        """Decodes anew each time: 1 µs an entry."""
        return decode_entries(self.encoded_entries)
