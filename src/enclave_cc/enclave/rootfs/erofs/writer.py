"""A merged tree as an EROFS metadata image whose regular files point into the layers' streams.

Layer i is extra device i + 1; a mount names them in order, the spill, if any, last. Directory data stands right before
the inodes it names, small directories and symbolic links hold theirs inside the inode's block, and subtrees follow one
another, so that a `find` over a cold image reads it front to back. The same tree gives the same bytes.

    0     nothing
    1024  superblock, 128 bytes
    1152  device table, 128 bytes each: one row per layer and one for the spill
    ...   root inode; then inodes and directories, depth first
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from enclave_cc.enclave.rootfs import entries as kinds
from enclave_cc.enclave.rootfs.entries import Entry
from enclave_cc.enclave.rootfs.erofs import format as disk
from enclave_cc.enclave.rootfs.erofs.content import FIRST_DEVICE_BLOCK, Content, Spill
from enclave_cc.enclave.rootfs.tree import Directory, Inode, Tree
from enclave_cc.errors import PeerError

BLOCK_BITS: Final = 9  # 512 bytes: the grid of tar
_BILLION: Final = 1_000_000_000


def write_metadata(tree: Tree, layer_sizes: Sequence[int], *, spill: Spill | None = None, block_bits: int = BLOCK_BITS) -> bytes:
    """The image. `layer_sizes` are the plain sizes of the layers' streams in bytes, in the order given to `merge`.

    Sizes that are no multiple of 512 are allowed: what lies in the cut block is spilled. Raises
    `PeerError("unsupported-image")` if content has to be copied and there is no `spill`, or beyond EROFS's limits, and
    `PeerError("layer-broken")` for attributes or device numbers that Linux cannot have.
    """
    if not 9 <= block_bits <= 12:
        raise ValueError("blocks are 512 to 4096 bytes")
    return _Writer(tree, Content(layer_sizes, block_bits, spill), block_bits, len(layer_sizes)).write()


class _PendingDirectory:
    """A directory whose inode is placed and whose children are not."""

    __slots__ = ("blocks", "names", "node", "nodes", "size", "slot")

    def __init__(self, node: Directory, parent: Directory, block_size: int) -> None:
        self.node = node
        known: dict[bytes, Inode] = {**node.children, b".": node, b"..": parent}
        self.names = sorted(known)  # byte order, "." and ".." in their places: the kernel searches by halves
        self.nodes = [known[name] for name in self.names]
        self.blocks = disk.split_names([len(name) for name in self.names], block_size)
        self.size = (len(self.blocks) - 1) * block_size + self.blocks[-1][2]
        self.slot = -1  # of the data in the output, if it stands in the inode's own block


class _Writer:
    def __init__(self, tree: Tree, content: Content, block_bits: int, layers: int) -> None:
        self._root = tree.root
        self._content = content
        self._bits = block_bits
        self._block = 1 << block_bits
        self._out: list[bytes] = []
        self._at = 0  # length of all that is in _out
        self._inodes = 0
        self._chunked = False
        self._links: dict[int, list[int]] = {}  # id of a hard-linked inode -> [its nid, names so far]
        self._patches: list[tuple[int, int]] = []  # (offset, u32): what was not known when its inode was written
        self._append(bytes(disk.SUPERBLOCK_OFFSET + disk.SUPERBLOCK_SIZE + disk.DEVICE_SLOT_SIZE * (layers + 1)))

    def write(self) -> bytes:
        stack = [self._place_directory(self._root, self._root)]
        while stack:
            stack += reversed(self._fill(stack.pop()))
            if self._at >> self._bits >= FIRST_DEVICE_BLOCK:
                raise PeerError("unsupported-image", "the image holds too many files")
        self._align(self._block)
        self._patches += ((nid * disk.SLOT_SIZE + disk.NLINK_OFFSET, names) for nid, names in self._links.values())
        head = disk.encode_superblock(
            self._bits,
            root_nid=self._root.nid,
            inodes=self._inodes,
            blocks=self._at >> self._bits,
            devices=self._content.finish(),
            chunked=self._chunked,
        )
        image = bytearray().join(self._out)
        for offset, value in self._patches:
            image[offset : offset + 4] = value.to_bytes(4, "little")
        image[disk.SUPERBLOCK_OFFSET : disk.SUPERBLOCK_OFFSET + len(head)] = head
        disk.set_checksum(image, self._bits)
        return bytes(image)

    def _append(self, data: bytes) -> None:
        self._out.append(data)
        self._at += len(data)

    def _align(self, size: int) -> None:
        if rest := -self._at % size:
            self._append(bytes(rest))

    # directories

    def _place_directory(self, node: Directory, parent: Directory) -> _PendingDirectory:
        pending = _PendingDirectory(node, parent, self._block)
        area = disk.encode_xattrs(node.entry.xattrs)
        inline = disk.INODE_SIZE + len(area) + pending.size <= self._block
        links = 2 + sum(isinstance(child, Directory) for child in node.children.values())
        self._inode(node, disk.INLINE if inline else disk.PLAIN, area, pending.size, 0, links, pending.size if inline else 0)
        if inline:
            pending.slot = len(self._out)
            self._append(bytes(pending.size))
            self._align(disk.SLOT_SIZE)
        return pending

    def _fill(self, pending: _PendingDirectory) -> list[_PendingDirectory]:
        """Place a directory's data and the inodes of its children; returns the directories among them."""
        slot, nodes = pending.slot, pending.nodes
        if slot < 0:
            self._align(self._block)
            self._patches.append((pending.node.nid * disk.SLOT_SIZE + disk.ADDRESS_OFFSET, self._at >> self._bits))
            slot = len(self._out)
            self._append(bytes(len(pending.blocks) * self._block))
        directories = []
        for name, node in zip(pending.names, nodes, strict=True):
            if isinstance(node, Directory):
                if name not in (b".", b".."):
                    directories.append(self._place_directory(node, pending.node))
            elif not node.linked:
                self._place(node)
            elif (link := self._links.get(id(node))) is not None:
                link[1] += 1
            else:
                self._place(node)
                self._links[id(node)] = [node.nid, 1]
        types = [disk.FILE_TYPES[node.entry.kind] for node in nodes]
        nids = [node.nid for node in nodes]
        data = b"".join(
            disk.encode_dirents(pending.names[first:end], nids[first:end], types[first:end]).ljust(self._block, b"\0")
            for first, end, _ in pending.blocks
        )
        self._out[slot] = data[: len(self._out[slot])]
        return directories

    # inodes

    def _inode(self, node: Inode, layout: int, area: bytes, size: int, address: int, links: int, inline: int) -> None:
        """Inode and attributes; `inline` bytes of data will follow in the same block."""
        entry = node.entry
        used = self._at & (self._block - 1)
        if used + disk.INODE_SIZE + (len(area) + inline if inline else 0) > self._block:
            self._align(self._block)
        node.nid = self._at // disk.SLOT_SIZE
        seconds, nanoseconds = divmod(entry[5], _BILLION)
        self._inodes += 1
        self._append(
            disk.INODE.pack(
                layout, disk.count_xattrs(area) if area else 0, disk.MODE_TYPES[entry[1]] | entry[2], 0, size, address,
                self._inodes, entry[3], entry[4], seconds, nanoseconds, links,
            )
        )  # fmt: skip
        if area:
            self._append(area)
            if not inline and layout != disk.CHUNKED:
                self._align(disk.SLOT_SIZE)

    def _place(self, node: Inode) -> None:
        """Any inode but a directory's."""
        entry = node.entry
        kind = entry.kind
        area = disk.encode_xattrs(entry.xattrs) if entry.xattrs else b""
        if kind == kinds.FILE:
            self._place_file(node, entry, area)
        elif kind == kinds.SYMLINK:
            self._place_symlink(node, entry, area)
        else:
            address = disk.encode_rdev(*entry.rdev) if kind in (kinds.CHARACTER_DEVICE, kinds.BLOCK_DEVICE) else 0
            self._inode(node, disk.PLAIN, area, 0, address, 1, 0)

    def _place_file(self, node: Inode, entry: Entry, area: bytes) -> None:
        size, extents = entry.size, entry.extents
        if not size:
            self._inode(node, disk.PLAIN, area, 0, 0, 1, 0)
        elif len(extents) == 1 and extents[0][1] == size:
            self._inode(node, disk.PLAIN, area, size, self._content.address(node.layer, extents[0], entry.dirty_padding), 1, 0)
        else:
            chunk_format, table = self._content.chunks(node.layer, extents, size, entry.dirty_padding)
            self._inode(node, disk.CHUNKED, area, size, chunk_format, 1, 0)
            self._append(table)
            self._align(disk.SLOT_SIZE)
            self._chunked = True

    def _place_symlink(self, node: Inode, entry: Entry, area: bytes) -> None:
        target = entry.link
        size = len(target)
        if disk.INODE_SIZE + len(area) + size <= self._block:
            self._inode(node, disk.INLINE, area, size, 0, 1, size)
            self._append(target)
        else:
            self._align(self._block)
            address = self._at >> self._bits
            self._append(target)
            self._align(self._block)
            self._inode(node, disk.PLAIN, area, size, address, 1, 0)
        self._align(disk.SLOT_SIZE)
