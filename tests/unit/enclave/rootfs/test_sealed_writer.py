"""Blobs on disk: whole under their name, or not there at all."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from enclave_cc.enclave.rootfs import sealed_writer
from enclave_cc.enclave.rootfs.sealed_reader import SealedReader
from enclave_cc.enclave.rootfs.sealed_writer import SealedWriter
from enclave_cc.errors import EnvironmentFault, PeerError
from enclave_cc.wire.sealed.block import Role

SIZE = 4096


def pieces(data: bytes, size: int) -> Iterator[bytes]:
    return (data[at : at + size] for at in range(0, len(data), size))


@pytest.mark.parametrize("piece", [1000, SIZE, SIZE + 1, 50_000])
@pytest.mark.parametrize("size", [0, 1, SIZE, SIZE + 1, 8 * SIZE, 9 * SIZE, 25 * SIZE + 77])
def test_what_is_written_is_read(size: int, piece: int, tmp_path: Path) -> None:
    plain = os.urandom(size)
    with SealedWriter(tmp_path, Role.LAYER, block_size=SIZE) as writer:
        for part in pieces(plain, piece):
            writer.write(memoryview(bytearray(part)))
        descriptor = writer.finish()
    path = tmp_path / "blobs" / descriptor.file_name
    assert path.stat().st_size == descriptor.sealed_size and descriptor.plain_size == size
    with SealedReader(tmp_path, descriptor) as reader:
        assert reader.read(0, size + 10) == plain
        for offset in range(0, size, 3001):
            assert reader.read(offset, 5000) == plain[offset : offset + 5000]


def test_nothing_has_a_name_before_the_end(tmp_path: Path) -> None:
    with SealedWriter(tmp_path, Role.LAYER) as writer:
        writer.write(bytes(1 << 20))
        assert list((tmp_path / "blobs").iterdir()) == []
    assert list((tmp_path / "blobs").iterdir()) == []


def test_a_killed_writer_leaves_nothing(tmp_path: Path) -> None:
    pid = os.fork()
    if pid == 0:
        writer = SealedWriter(tmp_path, Role.LAYER)
        writer.write(bytes(4 << 20))
        os.kill(os.getpid(), signal.SIGKILL)
    assert os.waitpid(pid, 0)[1] == signal.SIGKILL
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sealed_writer.os, "write", full)
    with SealedWriter(tmp_path, Role.LAYER) as writer:
        with pytest.raises(EnvironmentFault) as caught:
            writer.write(bytes(4 << 20))
    assert caught.value.code == "disk-full"
    assert list((tmp_path / "blobs").iterdir()) == []


def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(sealed_writer.os, "write", lambda fd, data: write(fd, data[:1000]))
    plain = os.urandom(50_000)
    with SealedWriter(tmp_path, Role.LAYER, block_size=SIZE) as writer:
        writer.write(plain)
        descriptor = writer.finish()
    with SealedReader(tmp_path, descriptor) as reader:
        assert reader.read(0, 50_000) == plain


def test_a_finished_writer_writes_no_more(tmp_path: Path) -> None:
    with SealedWriter(tmp_path, Role.LAYER, block_size=SIZE) as writer:
        writer.finish()
        with pytest.raises(ValueError):
            writer.write(bytes(2 * SIZE))


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "blobs").write_text("a file")
    with pytest.raises(EnvironmentFault) as caught:
        SealedWriter(tmp_path, Role.LAYER)
    assert caught.value.code == "environment"


def test_a_changed_blob_is_not_read(tmp_path: Path) -> None:
    with SealedWriter(tmp_path, Role.LAYER, block_size=SIZE) as writer:
        writer.write(bytes(3 * SIZE))
        descriptor = writer.finish()
    path = tmp_path / "blobs" / descriptor.file_name
    with path.open("r+b") as file:
        file.seek(SIZE + 16 + 5)
        file.write(b"\xff\xff")
    with SealedReader(tmp_path, descriptor) as reader:
        assert reader.read(0, SIZE) == bytes(SIZE)
        with pytest.raises(PeerError) as caught:
            reader.read(SIZE - 1, 2)
        assert caught.value.code == "seal-broken" and "block 1 " in caught.value.what
    path.unlink()
    with pytest.raises(EnvironmentFault):
        SealedReader(tmp_path, descriptor)
