"""Sealed blobs: any cut of any content reads back; hostile descriptors raise nothing but PeerError."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from enclave_cc.crypto.secret import Secret
from enclave_cc.enclave.boot.blocks import BlockCache, Scratch, SealedFile
from enclave_cc.enclave.image.inflate import inflate
from enclave_cc.enclave.rootfs.sealed_writer import SealedWriter
from enclave_cc.errors import PeerError
from enclave_cc.wire.sealed.block import Role
from enclave_cc.wire.sealed.descriptor import BlobDescriptor
from enclave_cc.wire.sealed.reader import open_block
from enclave_cc.wire.sealed.rootfs import RootfsDescriptor

BLOB = BlobDescriptor(bytes(16), Secret(bytes(32)), Role.LAYER, 4096, 10_000)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=40),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=6),
    max_leaves=12,
)
MEMBERS = st.sampled_from(["id", "key", "role", "block_size", "plain_size", "version", "metadata", "layers", "other"])


@settings(max_examples=60, deadline=None)
@given(
    chunks=st.lists(st.binary(max_size=3000), max_size=30).map(lambda parts: [part * 7 for part in parts]),
    reads=st.lists(st.tuples(st.integers(0, 400_000), st.integers(1, 30_000)), max_size=10),
)
def test_any_writes_and_any_reads(chunks: list[bytes], reads: list[tuple[int, int]]) -> None:
    plain = b"".join(chunks)
    padded = plain + bytes(-len(plain) % 512)
    with tempfile.TemporaryDirectory() as name:
        with SealedWriter(Path(name), Role.LAYER, block_size=4096) as writer:
            for chunk in chunks:
                writer.write(chunk)
            descriptor = writer.finish()
        file = SealedFile(f"{name}/blobs/{descriptor.file_name}", descriptor, 0, BlockCache(9000), print)
        scratch = Scratch(4096)
        for offset, size in [(0, len(padded) + 1), *reads]:
            assert b"".join(file.read(offset, size, scratch)) == padded[offset : offset + min(size, 256 * 1024)]
        file.close()


@given(value=st.dictionaries(MEMBERS, JSON, max_size=7) | JSON)
def test_any_json_is_a_descriptor_or_refused(value: object) -> None:
    for parse in (BlobDescriptor.from_json, RootfsDescriptor.from_json):
        try:
            parse(value)
        except PeerError as error:
            assert error.code == "malformed"


@given(member=st.sampled_from(sorted(BLOB.to_json())), value=JSON)
def test_a_descriptor_with_one_member_replaced(member: str, value: object) -> None:
    document = json.loads(json.dumps(BLOB.to_json())) | {member: value}
    try:
        assert BlobDescriptor.from_json(document).to_json() == document
    except PeerError as error:
        assert error.code == "malformed"


@given(index=st.integers(-(1 << 70), 1 << 70), sealed=st.binary(max_size=5000))
def test_no_bytes_open_that_were_not_sealed(index: int, sealed: bytes) -> None:
    try:
        open_block(BLOB, index, sealed)
    except PeerError as error:
        assert error.code == "seal-broken"
    else:
        raise AssertionError("it opened")


@given(
    magic=st.sampled_from([b"", b"\x1f\x8b\x08\x00", b"\x28\xb5\x2f\xfd", b"\x50\x2a\x4d\x18"]),
    data=st.lists(st.binary(max_size=300)),
)
def test_inflating_any_bytes_raises_only_layer_broken(magic: bytes, data: list[bytes]) -> None:
    try:
        for _ in inflate([magic, *data], limit=1 << 20):
            pass
    except PeerError as error:
        assert error.code == "layer-broken"
