"""Mounting a metadata image over plain layer files, as boot does it over its FUSE."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from enclave_cc.enclave.rootfs.erofs import write_metadata
from enclave_cc.enclave.rootfs.tar import TarParser
from enclave_cc.enclave.rootfs.tree import Tree, merge

_LIBC = ctypes.CDLL(None, use_errno=True)
_MS_RDONLY = 1
_MNT_DETACH = 2


class MemorySpill:
    """Layers and spill held in memory."""

    def __init__(self, layers: Sequence[bytes]) -> None:
        self.layers = layers
        self.data = bytearray()

    def read_layer(self, layer: int, offset: int, length: int) -> bytes:
        return self.layers[layer][offset : offset + length]

    def write(self, data: bytes) -> None:
        self.data += data


def parse_layers(layers: Sequence[bytes]) -> Tree:
    parsed = []
    for layer in layers:
        parser = TarParser()
        for at in range(0, len(layer), 1 << 17):
            parser.feed(memoryview(layer)[at : at + (1 << 17)])
        parsed.append(parser.finish())
    return merge(parsed)


def write_image(directory: Path, layers: Sequence[bytes], *, block_bits: int = 9) -> tuple[Path, list[Path]]:
    """The metadata image and its devices, as files."""
    spill = MemorySpill(layers)
    metadata = write_metadata(parse_layers(layers), [len(layer) for layer in layers], spill=spill, block_bits=block_bits)
    directory.mkdir(exist_ok=True)
    image = directory / "meta"
    image.write_bytes(metadata)
    devices = []
    for index, content in enumerate([*layers, *([bytes(spill.data)] if spill.data else [])]):
        devices.append(directory / str(index))
        devices[-1].write_bytes(content)
    return image, devices


@contextmanager
def mounted(image: Path, devices: Sequence[Path], target: Path) -> Iterator[Path]:
    """`target` with the image on it, by mount(2): mount(8) would put a loop device in between."""
    target.mkdir(exist_ok=True)
    options = ",".join(f"device={device}" for device in devices)
    if _LIBC.mount(os.fsencode(image), os.fsencode(target), b"erofs", _MS_RDONLY, os.fsencode(options)):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(image))
    try:
        yield target
    finally:
        if _LIBC.umount2(os.fsencode(target), _MNT_DETACH):
            raise OSError(ctypes.get_errno(), "umount")
