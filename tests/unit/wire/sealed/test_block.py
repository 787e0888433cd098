"""The constants of docs/formats/sealed.md, byte for byte, and what a block binds."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from enclave_cc.crypto.secret import Secret
from enclave_cc.errors import PeerError
from enclave_cc.wire.sealed import block
from enclave_cc.wire.sealed.descriptor import BlobDescriptor
from enclave_cc.wire.sealed.reader import BlockOpener, open_block
from enclave_cc.wire.sealed.sealer import BlockSealer

SIZE = 4096


def seal(plain: bytes, role: block.Role = block.Role.LAYER) -> tuple[BlobDescriptor, list[bytes]]:
    sealer = BlockSealer(role, block_size=SIZE)
    pieces = [plain[at : at + SIZE] for at in range(0, len(plain), SIZE)] or [b""]
    sealed = []
    for number, piece in enumerate(pieces):
        out = bytearray(len(piece) + 16)
        assert sealer.seal_into(piece, out, last=number == len(pieces) - 1) == len(out)
        sealed.append(bytes(out))
    return sealer.finish(), sealed


def test_a_block_is_what_the_document_says() -> None:
    """Opened here by the document alone, without a line of the reader."""
    plain = os.urandom(2 * SIZE + 5)
    descriptor, sealed = seal(plain, block.Role.SPILL)
    for index, body in enumerate(sealed):
        aad = b"enclave-cc/sealed/1" + b"\x03" + descriptor.id + index.to_bytes(8, "big") + (b"\x01" if index == 2 else b"\x00")
        assert len(aad) == 45
        cipher = AESGCM(descriptor.key.reveal())
        assert cipher.decrypt(bytes(4) + index.to_bytes(8, "big"), body, aad) == plain[index * SIZE : (index + 1) * SIZE]
    assert sum(map(len, sealed)) == descriptor.sealed_size == len(plain) + 3 * 16


@pytest.mark.parametrize("size", [0, 1, SIZE - 1, SIZE, SIZE + 1, 3 * SIZE])
def test_every_size_reads_back(size: int) -> None:
    plain = os.urandom(size)
    descriptor, sealed = seal(plain)
    assert descriptor.block_count == len(sealed) == max(1, -(-size // SIZE))
    opener = BlockOpener(descriptor)
    assert b"".join(opener.open(i, body) for i, body in enumerate(sealed)) == plain
    out = bytearray(len(sealed[-1]) - 16)
    assert opener.open_into(len(sealed) - 1, sealed[-1], out) == len(out)
    assert bytes(out) == plain[(len(sealed) - 1) * SIZE :]


def broken(descriptor: BlobDescriptor, index: int, sealed: bytes) -> None:
    with pytest.raises(PeerError) as caught:
        open_block(descriptor, index, sealed)
    assert caught.value.code == "seal-broken"
    assert descriptor.id.hex() in caught.value.what and f"block {index} " in caught.value.what
    with pytest.raises(PeerError) as caught:
        BlockOpener(descriptor).open_into(index, sealed, bytearray(max(0, len(sealed) - 16)))
    assert caught.value.code == "seal-broken"


def test_no_bit_of_a_block_can_change() -> None:
    descriptor, sealed = seal(b"x" * 40)
    for bit in range(len(sealed[0]) * 8):
        changed = bytearray(sealed[0])
        changed[bit // 8] ^= 1 << bit % 8
        broken(descriptor, 0, bytes(changed))


def test_blocks_do_not_stand_in_for_each_other() -> None:
    descriptor, sealed = seal(b"x" * 4 * SIZE)
    for index in range(4):
        for other in range(4):
            if index != other:
                broken(descriptor, index, sealed[other])
    broken(descriptor, 4, sealed[3])
    broken(descriptor, -1, sealed[0])


@pytest.mark.parametrize("size", [0, 1, 15, 16, SIZE, SIZE + 15, SIZE + 17])
def test_a_block_has_one_size(size: int) -> None:
    descriptor, sealed = seal(b"x" * 2 * SIZE)
    broken(descriptor, 0, (sealed[0] + bytes(100))[:size])


def test_a_blob_does_not_end_early_or_late() -> None:
    plain = os.urandom(3 * SIZE)
    descriptor, sealed = seal(plain)
    shorter = BlobDescriptor(descriptor.id, descriptor.key, descriptor.role, SIZE, 2 * SIZE)
    broken(shorter, 1, sealed[1])  # not sealed as the last one
    longer = BlobDescriptor(descriptor.id, descriptor.key, descriptor.role, SIZE, 4 * SIZE)
    broken(longer, 2, sealed[2])  # sealed as the last one


def test_role_id_and_key_are_bound() -> None:
    descriptor, (sealed,) = seal(b"x")
    for other in (
        BlobDescriptor(os.urandom(16), descriptor.key, descriptor.role, SIZE, 1),
        BlobDescriptor(descriptor.id, Secret.random(32), descriptor.role, SIZE, 1),
        BlobDescriptor(descriptor.id, descriptor.key, block.Role.METADATA, SIZE, 1),
    ):
        broken(other, 0, sealed)


def test_a_sealer_refuses_to_seal_on() -> None:
    sealer = BlockSealer(block.Role.LAYER, block_size=SIZE)
    with pytest.raises(ValueError):
        sealer.seal_into(b"short", bytearray(21), last=False)
    with pytest.raises(ValueError):
        sealer.finish()
    sealer.seal_into(b"short", bytearray(21), last=True)
    with pytest.raises(ValueError):
        sealer.seal_into(b"", bytearray(16), last=True)


def test_the_document_states_the_constants() -> None:
    text = (Path(__file__).parents[4] / "docs/formats/sealed.md").read_text()
    assert f"({block.BLOCK_SIZE:,} in this version)" in text
    for role in block.Role:
        assert f"| `{role.name.lower()}` | {role.value} |" in text
