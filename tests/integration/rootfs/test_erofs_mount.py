"""The kernel's view of images that umoci cannot judge: limits, spills, cut streams, blocks, many layers."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import subprocess
import tarfile
from pathlib import Path

import pytest
from erofs_mount import MemorySpill, mounted, write_image
from oci_layout import LayerBuilder

from enclave_cc.enclave.rootfs import entries
from enclave_cc.enclave.rootfs.entries import Entry
from enclave_cc.enclave.rootfs.erofs import write_metadata
from enclave_cc.enclave.rootfs.tree import merge

pytestmark = pytest.mark.root


def test_128_layers(short_path: Path) -> None:
    layers = [
        LayerBuilder().add(f"own-{index}", body=b"%d" % index * 300).add("last", body=b"%d" % index).finish()
        for index in range(128)
    ]
    image, devices = write_image(short_path / "i", layers)
    assert len(devices) == 128
    with mounted(image, devices, short_path / "m") as mount:
        for index in range(128):
            assert (mount / f"own-{index}").read_bytes() == b"%d" % index * 300
        assert (mount / "last").read_bytes() == b"127"


def test_no_layers_and_empty_layers(tmp_path: Path) -> None:
    image, devices = write_image(tmp_path / "none", [])
    with mounted(image, devices, tmp_path / "mnt") as mount:
        assert os.listdir(mount) == []
        assert (mount.stat().st_mode & 0o7777, mount.stat().st_mtime_ns) == (0o755, 0)
    image, devices = write_image(tmp_path / "empty", [b"", LayerBuilder().add("f", body=b"f").finish(), bytes(1024), b""])
    with mounted(image, devices, tmp_path / "mnt") as mount:
        assert (mount / "f").read_bytes() == b"f"


@pytest.mark.parametrize("block_bits", [9, 12])
def test_a_stream_cut_right_behind_the_last_body(tmp_path: Path, block_bits: int) -> None:
    body = os.urandom(5000)
    layer = LayerBuilder().add("first", body=b"1" * 5000).add("last", body=body).finish()
    cut = layer[: layer.index(body) + len(body)]
    assert len(cut) % 512
    image, devices = write_image(tmp_path / "image", [cut], block_bits=block_bits)
    assert len(devices) == 2  # the last body lies in a cut block
    with mounted(image, devices, tmp_path / "mnt") as mount:
        assert (mount / "first").read_bytes() == b"1" * 5000
        assert (mount / "last").read_bytes() == body


@pytest.mark.parametrize("block_bits", [9, 12])
def test_nothing_of_the_stream_shows_behind_the_end_of_a_file(tmp_path: Path, block_bits: int) -> None:
    """A mapping shows whole pages: they must be zero behind the file, whatever the tar has there."""
    layer = bytearray(LayerBuilder().add("f", body=b"visible").add("next", body=b"hidden").finish())
    at = layer.index(b"visible") + 7
    layer[at : at + 100] = b"#" * 100
    image, devices = write_image(tmp_path / "image", [bytes(layer)], block_bits=block_bits)
    with mounted(image, devices, tmp_path / "mnt") as mount, (mount / "f").open("rb") as file:
        with mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapping:
            assert mapping[:] == b"visible"
        libc = ctypes.CDLL(None, use_errno=True)
        libc.mmap.restype = ctypes.c_void_p
        address = libc.mmap(None, 4096, mmap.PROT_READ, mmap.MAP_PRIVATE, file.fileno(), ctypes.c_long(0))
        assert address not in (None, ctypes.c_void_p(-1).value)
        assert ctypes.string_at(address, 4096) == b"visible".ljust(4096, b"\0")
        libc.munmap(ctypes.c_void_p(address), 4096)


def sparse_tree(size: int, extents: tuple[tuple[int, int, int], ...]) -> list[Entry]:
    return [Entry(b"sparse", entries.FILE, size=size, extents=extents)]


@pytest.mark.parametrize("block_bits", [9, 12])
@pytest.mark.parametrize(
    "extents",
    [
        ((512, 512, 0), (1024, 512, 8192)),  # on the grid
        ((512, 700, 0), (1212, 512, 8192)),  # the second begins off the grid
        ((100, 50, 33), (7, 1000, 9000), (3000, 1, 99_999)),  # all off
        ((0, 4096, 4096), (4096, 4096, 8192), (8192, 4096, 40_960)),  # neighbours
        ((0, 100_000, 0),),  # dense, in one piece
        (),  # nothing but a hole
    ],
)
def test_sparse_content_wherever_it_lies(tmp_path: Path, extents: tuple[tuple[int, int, int], ...], block_bits: int) -> None:
    stream = os.urandom(100_352)
    expected = bytearray(100_000)
    for offset, length, at in extents:
        expected[at : at + length] = stream[offset : offset + length]
    spill = MemorySpill([stream])
    metadata = write_metadata(merge([sparse_tree(100_000, extents)]), [len(stream)], spill=spill, block_bits=block_bits)
    (tmp_path / "meta").write_bytes(metadata)
    (tmp_path / "0").write_bytes(stream)
    (tmp_path / "1").write_bytes(spill.data)
    devices = [tmp_path / "0", tmp_path / "1"][: 2 if spill.data else 1]
    with mounted(tmp_path / "meta", devices, tmp_path / "mnt") as mount:
        assert (mount / "sparse").read_bytes() == bytes(expected)


def test_a_large_directory_finds_every_name_and_no_other(tmp_path: Path) -> None:
    layer = LayerBuilder().directory("d")
    names = sorted({f"{'.-!~z'[index % 5]}{index * 7919 % 4001}{'y' * (index % 61)}" for index in range(4000)})
    for name in names:
        layer.add(f"d/{name}")
    image, devices = write_image(tmp_path / "image", [layer.finish()])
    with mounted(image, devices, tmp_path / "mnt") as mount:
        directory = mount / "d"
        for name in names:
            assert (directory / name).stat().st_size == 0
        for name in names[::7]:
            with pytest.raises(FileNotFoundError):
                (directory / (name + "~")).lstat()
        assert sorted(os.listdir(directory)) == names
        assert directory.stat().st_nlink == 2


def test_it_is_read_only(tmp_path: Path) -> None:
    image, devices = write_image(tmp_path / "image", [LayerBuilder().add("f", body=b"f").finish()])
    with mounted(image, devices, tmp_path / "mnt") as mount:
        with pytest.raises(OSError) as refusal:
            (mount / "f").write_bytes(b"g")
        assert refusal.value.errno == errno.EROFS


def test_the_kernel_checks_the_superblock(tmp_path: Path) -> None:
    image, devices = write_image(tmp_path / "image", [LayerBuilder().add("f", body=b"f").finish()])
    damaged = bytearray(image.read_bytes())
    damaged[1024 + 100] ^= 1
    image.write_bytes(damaged)
    with pytest.raises(OSError):
        with mounted(image, devices, tmp_path / "mnt"):
            pass


def test_fsck_agrees(tmp_path: Path) -> None:
    """fsck.erofs as Debian has it knows blocks of 4096 bytes only; all but the block size is the same code."""
    layer = LayerBuilder().directory("d", xattrs={"user.a": "b"}).symlink("d/s", "x" * 300).hardlink("d/h", "d/s")
    layer.add("d/n", tarfile.CHRTYPE, devmajor=5, devminor=1)
    for index in range(500):
        layer.add(f"d/{index:04}", body=b"x" * index)
    image, devices = write_image(tmp_path / "image", [layer.finish()], block_bits=12)
    command = ["fsck.erofs", *(f"--device={device}" for device in devices), str(image)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    damaged = bytearray(image.read_bytes())
    at = damaged.index(b"0123")  # a name in a directory block; its order is lost
    damaged[at : at + 4] = b"9999"
    image.write_bytes(damaged)
    assert subprocess.run(command, check=False, capture_output=True).returncode != 0
