"""Any bytes are cached entries that merge and get their metadata, or raise `PeerError`."""

from __future__ import annotations

from contextlib import suppress

from enclave_cc.enclave.rootfs import entries
from enclave_cc.enclave.rootfs.entries import Entry, decode_entries, encode_entries
from enclave_cc.enclave.rootfs.erofs import write_metadata
from enclave_cc.enclave.rootfs.tree import merge
from enclave_cc.errors import PeerError

SEEDS: list[bytes] = [
    encode_entries([]),
    encode_entries(
        [
            Entry(b"d", entries.DIRECTORY, 0o755),
            Entry(b"d/f", entries.FILE, size=600, extents=((512, 600, 0),), xattrs={b"user.a": b"b"}),
            Entry(b"d/s", entries.SYMLINK, 0o777, link=b"f"),
            Entry(b"d/h", entries.HARDLINK, link=b"d/f"),
            Entry(b"h", entries.FILE, size=9000, extents=((512, 512, 4096), (1024, 10, 8192))),
            Entry(b"c", entries.CHARACTER_DEVICE, rdev=(1, 3)),
        ]
    ),
]


def target(data: bytes) -> None:
    with suppress(PeerError):
        write_metadata(merge([decode_entries(data)]), [4096])
