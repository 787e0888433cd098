"""The metadata image as bytes. That the kernel reads it is tested in tests/integration/rootfs."""

from __future__ import annotations

import struct

import pytest

from enclave_cc.enclave.rootfs import entries
from enclave_cc.enclave.rootfs.entries import Entry
from enclave_cc.enclave.rootfs.erofs import content, write_metadata
from enclave_cc.enclave.rootfs.erofs import format as disk
from enclave_cc.enclave.rootfs.tree import merge
from enclave_cc.errors import PeerError


class Spill:
    def __init__(self, *layers: bytes) -> None:
        self.layers = layers
        self.written = bytearray()

    def read_layer(self, layer: int, offset: int, length: int) -> bytes:
        return self.layers[layer][offset : offset + length]

    def write(self, data: bytes) -> None:
        self.written += data


def write(*layer: Entry, size: int = 1 << 20, **options: object) -> bytes:
    return write_metadata(merge([layer]), [size], **options)  # type: ignore[arg-type]


def inode_at(image: bytes, nid: int) -> tuple[int, ...]:
    return disk.INODE.unpack_from(image, nid * disk.SLOT_SIZE)


def root_nid(image: bytes) -> int:
    nid: int = struct.unpack_from("<H", image, 1024 + 14)[0]
    return nid


def names_in(image: bytes, nid: int) -> dict[bytes, int]:
    """A small directory, read back: name -> nid."""
    layout, _, _, _, size, *_ = inode_at(image, nid)
    assert layout == disk.INLINE
    data = image[nid * disk.SLOT_SIZE + disk.INODE_SIZE :][:size]
    count = struct.unpack_from("<H", data, 8)[0] // disk.DIRENT_SIZE
    dirents = [struct.unpack_from("<QHBB", data, index * disk.DIRENT_SIZE) for index in range(count)]
    ends = [dirent[1] for dirent in dirents[1:]] + [size]
    return {data[start:end]: nid for (nid, start, _, _), end in zip(dirents, ends, strict=True)}


def test_crc32c_known_answer() -> None:
    assert disk.crc32c(b"123456789") ^ 0xFFFFFFFF == 0xE3069283  # the check value of CRC-32C


def test_superblock() -> None:
    image = write(Entry(b"f", entries.FILE, size=5, extents=((512, 5, 0),)))
    assert len(image) % 512 == 0
    magic, checksum, compatible, bits = struct.unpack_from("<IIIB", image, 1024)
    assert (magic, compatible, bits) == (disk.MAGIC, disk.COMPAT_CHECKSUM | disk.COMPAT_MTIME, 9)
    cleared = bytearray(image)
    cleared[1028:1032] = bytes(4)
    assert checksum == disk.crc32c(cleared[1024:1536])
    assert struct.unpack_from("<I", image, 1024 + 36)[0] == len(image) // 512
    assert struct.unpack_from("<Q", image, 1024 + 16)[0] == 2  # inodes
    incompatible, _, devices, slot = struct.unpack_from("<IHHH", image, 1024 + 80)
    assert (incompatible, devices, slot) == (disk.INCOMPAT_DEVICE_TABLE, 1, 9)
    assert struct.unpack_from("<II", image, slot * 128 + 64) == ((1 << 20) // 512, content.FIRST_DEVICE_BLOCK)


def test_a_file_points_into_its_layer() -> None:
    tree = merge(
        [
            [Entry(b"a", entries.FILE, size=1000, extents=((1024, 1000, 0),))],
            [Entry(b"b", entries.FILE, size=1, extents=((512, 1, 0),))],
        ]
    )
    image = write_metadata(tree, [4096, 2048])
    names = names_in(image, root_nid(image))
    assert inode_at(image, names[b"a"])[4:6] == (1000, content.FIRST_DEVICE_BLOCK + 2)
    assert inode_at(image, names[b"b"])[4:6] == (1, content.FIRST_DEVICE_BLOCK + 8 + 1)
    assert names[b"."] == names[b".."] == root_nid(image)


def test_the_same_tree_gives_the_same_bytes() -> None:
    layer = [Entry(b"d/%d" % index, entries.FILE, xattrs={b"user.b": b"1", b"user.a": b"2"}) for index in range(100)]
    layer.append(Entry(b"h", entries.HARDLINK, link=b"d/5"))
    tree = merge([layer])
    first = write_metadata(tree, [0])
    assert write_metadata(tree, [0]) == first
    assert write_metadata(merge([layer[:100][::-1] + layer[100:]]), [0]) == first


def test_hard_links_are_counted() -> None:
    image = write(Entry(b"a", entries.FILE), *(Entry(b"l%d" % index, entries.HARDLINK, link=b"a") for index in range(3)))
    names = names_in(image, root_nid(image))
    assert names[b"a"] == names[b"l0"] == names[b"l2"]
    assert inode_at(image, names[b"a"])[-1] == 4


def test_links_whose_other_names_are_gone_count_one() -> None:
    image = write(Entry(b"a", entries.FILE), Entry(b"l", entries.HARDLINK, link=b"a"), Entry(b"a", entries.FIFO))
    assert inode_at(image, names_in(image, root_nid(image))[b"l"])[-1] == 1


@pytest.mark.parametrize("lengths", [[1, 2], [255] * 5, [8] * 100, [243, 243, 1, 255, 230, 1]])
@pytest.mark.parametrize("block", [512, 4096])
def test_directory_blocks_are_full_but_never_overflow(lengths: list[int], block: int) -> None:
    blocks = disk.split_names(lengths, block)
    assert [index for first, end, _ in blocks for index in range(first, end)] == list(range(len(lengths)))
    for (first, end, used), following in zip(blocks, [*blocks[1:], None], strict=True):
        assert used == sum(lengths[first:end]) + 12 * (end - first) <= block
        if following is not None:
            assert used + 12 + lengths[following[0]] > block


def test_xattrs() -> None:
    assert disk.encode_xattrs({}) == b""
    area = disk.encode_xattrs({b"user.ab": b"xyz", b"system.posix_acl_access": b"A", b"security.capability": b"c"})
    assert len(area) % 4 == 0 and disk.count_xattrs(area) == 1 + (len(area) - 12) // 4
    entries_area = area[12:]
    assert (
        entries_area.index(b"\x0a\x06\x01\x00capabilityc") < entries_area.index(b"\0\2\1\0A") < entries_area.index(b"\2\1\3\0abxyz")
    )


@pytest.mark.parametrize("name", [b"user.", b"other.x", b"system.posix_acl_accessx", b"user." + b"n" * 251, b"x"])
def test_xattrs_that_linux_cannot_have(name: bytes) -> None:
    with pytest.raises(PeerError):
        disk.encode_xattrs({name: b""})


def test_xattrs_that_are_too_much() -> None:
    with pytest.raises(PeerError):
        disk.encode_xattrs({b"user.a": bytes(65_536)})
    with pytest.raises(PeerError):
        disk.encode_xattrs({b"user.%d" % index: bytes(60_000) for index in range(5)})


@pytest.mark.parametrize(("device", "number"), [((1, 3), 0x103), ((8, 300), 0x10082C), ((4095, 1048575), 0xFFFFFFFF)])
def test_device_numbers(device: tuple[int, int], number: int) -> None:
    assert disk.encode_rdev(*device) == number


@pytest.mark.parametrize("device", [(4096, 0), (0, 1 << 20)])
def test_device_numbers_that_linux_cannot_have(device: tuple[int, int]) -> None:
    with pytest.raises(PeerError):
        write(Entry(b"c", entries.CHARACTER_DEVICE, rdev=device))


def test_content_off_the_grid_needs_a_spill() -> None:
    off = Entry(b"f", entries.FILE, size=700, extents=((100, 700, 0),))
    with pytest.raises(PeerError) as refusal:
        write(off)
    assert refusal.value.code == "unsupported-image"
    layer = bytes(range(256)) * 8
    spill = Spill(layer)
    image = write(off, size=len(layer), spill=spill)
    assert spill.written == layer[100:800] + bytes(324)
    assert struct.unpack_from("<H", image, 1024 + 86)[0] == 2
    assert struct.unpack_from("<II", image, 10 * 128 + 64) == (2, content.FIRST_DEVICE_BLOCK + 4)


def test_a_layer_shorter_than_its_entries_is_refused() -> None:
    with pytest.raises(PeerError) as refusal:
        write(Entry(b"f", entries.FILE, size=700, extents=((512, 700, 0),)), size=600, spill=Spill(bytes(600)))
    assert refusal.value.code == "layer-broken"


def test_dirty_padding_is_not_used_in_place() -> None:
    for size, copied in ((700, 1024), (1024, 0)):
        spill = Spill(b"\xff" * 2048)
        write(Entry(b"f", entries.FILE, size=size, extents=((512, size, 0),), dirty_padding=True), size=2048, spill=spill)
        assert spill.written == (b"\xff" * size).ljust(copied, b"\0")[:copied]


def test_a_sparse_file_takes_the_cheapest_chunks() -> None:
    # 1 TiB with one aligned megabyte: large chunks, nothing copied
    at = 512 << 20
    spill = Spill(bytes(2 << 20))
    image = write(Entry(b"s", entries.FILE, size=1 << 40, extents=((512, 1 << 20, at),)), size=2 << 20, spill=spill)
    chunk_format = inode_at(image, names_in(image, root_nid(image))[b"s"])[5]
    assert chunk_format == 11  # 512 << 11 is the megabyte
    assert not spill.written


def test_sparse_files_beyond_all_bounds_are_refused() -> None:
    for extents in ((), ((512, 1, 12_345),)):
        with pytest.raises(PeerError) as refusal:
            write(Entry(b"s", entries.FILE, size=(1 << 63) - 1, extents=extents), spill=Spill(bytes(1 << 20)))
        assert refusal.value.code == "unsupported-image"


def test_the_maps_of_many_sparse_files_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    holes = [Entry(b"s%d" % index, entries.FILE, size=1 << 40) for index in range(3)]  # 2048 chunks of 512 MiB each
    monkeypatch.setattr(content, "MAX_ALL_CHUNKS", 3 * 2048)
    write(*holes)
    with pytest.raises(PeerError):
        write(*holes, Entry(b"another", entries.FILE, size=1))


def test_segments_out_of_order_are_refused() -> None:
    for extents in (((512, 512, 4096), (1024, 512, 0)), ((512, 512, 8000),), ((512, 1 << 62, 0), (0, 1, 1 << 62))):
        with pytest.raises(PeerError):
            write(Entry(b"s", entries.FILE, size=8192, extents=extents), spill=Spill(bytes(1 << 20)))


def test_the_spill_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(content, "MAX_SPILL", 4096)
    with pytest.raises(PeerError):
        write(Entry(b"f", entries.FILE, size=5000, extents=((100, 5000, 0),)), spill=Spill(bytes(1 << 20)))


def test_layers_beyond_the_address_space_are_refused() -> None:
    with pytest.raises(PeerError):
        write_metadata(merge([]), [1 << 41])


@pytest.mark.parametrize("bits", [8, 13])
def test_block_sizes(bits: int) -> None:
    with pytest.raises(ValueError, match="blocks"):
        write_metadata(merge([]), [], block_bits=bits)
