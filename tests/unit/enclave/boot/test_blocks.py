"""Reads across blocks: any offset, any size, through the cache or not, and of blobs that were changed."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from enclave_cc.enclave.boot.blocks import MAX_READ, BlockCache, Scratch, SealedFile
from enclave_cc.errors import PeerError
from enclave_cc.wire.sealed.block import Role
from enclave_cc.wire.sealed.descriptor import BlobDescriptor
from enclave_cc.wire.sealed.sealer import BlockSealer

SIZE = 4096
PLAIN = os.urandom(10 * SIZE + 700)


def write(path: Path, plain: bytes = PLAIN) -> BlobDescriptor:
    sealer = BlockSealer(Role.LAYER, block_size=SIZE)
    parts = [plain[at : at + SIZE] for at in range(0, len(plain), SIZE)] or [b""]
    with path.open("wb") as file:
        for number, part in enumerate(parts):
            out = bytearray(len(part) + 16)
            sealer.seal_into(part, out, last=number == len(parts) - 1)
            file.write(out)
    return sealer.finish()


class Reader:
    def __init__(self, path: Path, descriptor: BlobDescriptor, cache: BlockCache | None = None) -> None:
        self.log: list[str] = []
        self.file = SealedFile(str(path), descriptor, 0, cache or BlockCache(), self.log.append)
        self._scratch = Scratch(descriptor.block_size)

    def read(self, offset: int, size: int) -> bytes:
        return b"".join(self.file.read(offset, size, self._scratch))


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    made = Reader(tmp_path / "blob", write(tmp_path / "blob"))
    yield made
    made.file.close()


def served(offset: int, size: int) -> bytes:
    padded = PLAIN + bytes(-len(PLAIN) % 512)
    return padded[offset : offset + size]


@pytest.mark.parametrize("size", [1, 512, SIZE - 1, SIZE, SIZE + 1, 3 * SIZE + 5, 20 * SIZE])
@pytest.mark.parametrize(
    "offset", [0, 1, SIZE - 1, SIZE, 5 * SIZE + 9, 10 * SIZE, 10 * SIZE + 699, 10 * SIZE + 700, 10 * SIZE + 1023]
)
def test_offsets_and_sizes(reader: Reader, offset: int, size: int) -> None:
    for _ in range(2):  # the second read finds the cache filled
        assert reader.read(offset, size) == served(offset, size)


def test_the_served_size_is_whole_granules(reader: Reader) -> None:
    assert reader.file.size == 10 * SIZE + 1024
    assert reader.read(reader.file.size, 10) == b"" == reader.read(1 << 60, 10)


def test_reads_in_any_order(reader: Reader) -> None:
    dice = random.Random(7)
    for _ in range(800):
        offset, size = dice.randrange(len(PLAIN) + 600), dice.randrange(1, 4 * SIZE)
        assert reader.read(offset, size) == served(offset, size)


def test_a_small_cache_forgets(tmp_path: Path) -> None:
    cache = BlockCache(2 * SIZE)
    reader = Reader(tmp_path / "blob", write(tmp_path / "blob"), cache)
    for index in range(5):
        reader.read(index * SIZE + 1, 5)
    assert [cache.get((0, index)) is not None for index in range(5)] == [False, False, False, True, True]
    reader.file.close()


def test_a_large_read_is_cut_to_what_the_buffers_hold(tmp_path: Path) -> None:
    plain = os.urandom(3 * MAX_READ)
    reader = Reader(tmp_path / "blob", write(tmp_path / "blob", plain))
    assert reader.read(5, 1 << 40) == plain[5 : 5 + MAX_READ]
    reader.file.close()


def test_an_empty_blob(tmp_path: Path) -> None:
    reader = Reader(tmp_path / "blob", write(tmp_path / "blob", b""))
    assert reader.file.size == 0 and reader.read(0, 10) == b""
    reader.file.close()


def test_a_changed_block_fails_alone_and_is_named_once(reader: Reader, tmp_path: Path) -> None:
    with (tmp_path / "blob").open("r+b") as file:
        file.seek(3 * (SIZE + 16) + 100)
        file.write(b"\0\0\0\0")
    for offset, size in ((3 * SIZE, 10), (0, 5 * SIZE), (4 * SIZE - 1, 1)):
        with pytest.raises(PeerError) as caught:
            reader.read(offset, size)
        assert caught.value.code == "seal-broken"
    assert reader.read(0, 3 * SIZE) == PLAIN[: 3 * SIZE]
    assert reader.read(4 * SIZE, 3 * SIZE) == PLAIN[4 * SIZE : 7 * SIZE]
    (line,) = reader.log
    assert line.startswith("seal-broken") and "block 3 " in line and reader.file.descriptor.id.hex() in line


@pytest.mark.parametrize("left", [0, 100, 3 * (SIZE + 16), 3 * (SIZE + 16) + 5, 3 * (SIZE + 16) + 17])
def test_a_file_cut_short_under_the_reader(reader: Reader, tmp_path: Path, left: int) -> None:
    os.truncate(tmp_path / "blob", left)
    whole = left // (SIZE + 16)
    for index in range(11):
        if index < whole:
            assert reader.read(index * SIZE, SIZE) == PLAIN[index * SIZE : (index + 1) * SIZE]
        else:
            with pytest.raises(PeerError):
                reader.read(index * SIZE, 10)


def test_stale_bytes_in_the_buffers_are_never_served(reader: Reader, tmp_path: Path) -> None:
    """After a good read the buffers hold good ciphertext; a file that shrank must not be completed from it."""
    assert reader.read(0, 4 * SIZE) == PLAIN[: 4 * SIZE]
    os.truncate(tmp_path / "blob", SIZE + 16)
    with pytest.raises(PeerError):
        reader.read(0, 4 * SIZE)


@pytest.mark.parametrize("kind", ["absent", "directory", "fifo", "symlink", "short", "long", "empty"])
def test_what_cannot_be_the_blob_is_not_opened(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "blob"
    descriptor = write(path)
    whole = path.read_bytes()
    path.unlink()
    if kind == "directory":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "symlink":
        (tmp_path / "other").write_bytes(whole)
        path.symlink_to(tmp_path / "other")
    elif kind != "absent":
        path.write_bytes({"short": whole[:-1], "long": whole + b"\0", "empty": b""}[kind])
    with pytest.raises(PeerError) as caught:
        SealedFile(str(path), descriptor, 0, BlockCache(), print)
    assert caught.value.code == "seal-broken" and descriptor.id.hex() in caught.value.what
