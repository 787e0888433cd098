"""Layers merged into the tree that a container sees.

The rules are the OCI image spec's "Applying Changesets"; where it leaves room we do what `umoci unpack` 0.4.7 does as
root, entry by entry and in order, because the result is compared with it:

- parents are resolved inside the root with symbolic links followed (securejoin); missing ones are made 0755 root;
- an entry replaces what was there, unless both are directories: then it replaces the metadata and keeps the children;
- a hard link takes the inode that its target names at that moment, of this layer or a lower one;
- a whiteout removes what lower layers brought, never what its own layer brought, wherever in the layer it stands;
- adding or removing a name does not touch its directory's times;
- extended attributes that belong to the host that made the layer (SELinux labels, overlayfs state) are dropped.

Two results of umoci have no meaning and are not copied: the time of unpacking as the mtime of directories that no
layer describes (here the epoch), and files named `.wh.*` (here refused).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from enclave_cc.enclave.rootfs.entries import DIRECTORY, FILE, HARDLINK, NO_XATTRS, SYMLINK, Entry
from enclave_cc.errors import PeerError
from enclave_cc.record import record

MAX_INODES: Final = 1 << 22
MAX_NAME: Final = 255
MAX_SYMLINKS: Final = 255  # as securejoin
WHITEOUT: Final = b".wh."
OPAQUE: Final = b".wh..wh..opq"
_AUFS_METADATA: Final = b".wh..wh."

_ROOT: Final = Entry(b"", DIRECTORY, 0o755)
_HOST_XATTRS: Final = frozenset((b"security.selinux", b"system.nfs4_acl"))
_OVERLAY_XATTR: Final = b"trusted.overlay."  # all of them: newer kernels have more than umoci knows
ACL_ACCESS: Final = b"system.posix_acl_access"
ACL_DEFAULT: Final = b"system.posix_acl_default"
_SETGID: Final = 0o2000


class Inode:
    """A node of the tree; hard links are one inode under several names. `layer` is whose stream its extents are in."""

    __slots__ = ("entry", "layer", "linked", "nid")

    def __init__(self, entry: Entry, layer: int) -> None:
        self.entry = entry
        self.layer = layer
        self.linked = False  # has, or had, more than one name
        self.nid = 0  # scratch of the metadata writer


class Directory(Inode):
    __slots__ = ("children",)

    def __init__(self, entry: Entry, layer: int) -> None:
        super().__init__(entry, layer)
        self.children: dict[bytes, Inode] = {}


@record
class Tree:
    root: Directory

    def walk(self) -> Iterator[tuple[bytes, Inode]]:
        """Every path (the root is b"") with its inode, parents first, names in byte order."""
        stack: list[tuple[bytes, Inode]] = [(b"", self.root)]
        while stack:
            path, inode = stack.pop()
            yield path, inode
            if isinstance(inode, Directory):
                prefix = path + b"/" if path else b""
                stack += ((prefix + name, inode.children[name]) for name in sorted(inode.children, reverse=True))


def merge(layers: Sequence[Sequence[Entry]]) -> Tree:
    """The tree of `layers`, lowest first. Raises `PeerError("layer-broken")` where umoci refuses to unpack."""
    root = Directory(_ROOT, -1)
    count = 0
    for index, entries in enumerate(layers):
        count += _Layer(root, index, entries).apply(entries, MAX_INODES - count)
    return Tree(root)


def _broken(what: str) -> PeerError:
    # Without the name: what is in an encrypted layer is called is nothing for the host's log.
    return PeerError("layer-broken", what)


class _Layer:
    """One changeset being applied."""

    __slots__ = ("_created", "_has_whiteouts", "_index", "_parents", "_root", "_upper")

    def __init__(self, root: Directory, index: int, entries: Sequence[Entry]) -> None:
        self._root = root
        self._index = index
        self._created = 0
        # Directory path as written -> its inode and path with symbolic links resolved. Emptied when that may change.
        self._parents: dict[bytes, tuple[Directory, bytes]] = {}
        # Resolved paths that this layer brought, with their ancestors: what its whiteouts must spare. Most have none.
        self._has_whiteouts = any(WHITEOUT in e.path for e in entries)
        self._upper: set[bytes] = set()

    def apply(self, entries: Sequence[Entry], budget: int) -> int:
        """Returns how many inodes were made."""
        parents, has_whiteouts = self._parents, self._has_whiteouts
        for entry in entries:
            path, kind = entry[0], entry[1]
            if has_whiteouts and WHITEOUT in path and self._whiteout(path):
                continue
            if entry.xattrs:
                entry = _with_kept_xattrs(entry)  # noqa: PLW2901
            if not path:
                if kind != DIRECTORY:
                    raise _broken("a layer replaces the root directory by something else")
                self._root.entry = entry
                continue
            directory, _, name = path.rpartition(b"/")
            found = parents.get(directory)
            if found is None:
                found = parents[directory] = self._make_parents(directory)
            parent, parent_path = found
            children = parent.children
            existing = children.get(name)
            if kind == DIRECTORY and isinstance(existing, Directory):
                existing.entry = entry
            else:
                if existing is not None:
                    self._forget(existing)
                    del children[name]
                if kind == HARDLINK:
                    children[name] = self._link_target(entry)
                elif kind == DIRECTORY:
                    children[name] = self._make_directory(entry, name)
                else:
                    self._check_name(name)
                    children[name] = Inode(entry, self._index)
            if has_whiteouts:
                self._mark(parent_path, name)
            if self._created > budget:
                raise _broken("the layers hold too many files")
        return self._created

    def _check_name(self, name: bytes) -> None:
        if name in (b"", b".", b"..") or len(name) > MAX_NAME:
            raise _broken("a file name that Linux does not take")
        self._created += 1

    def _make_directory(self, entry: Entry, name: bytes) -> Directory:
        self._check_name(name)
        return Directory(entry, self._index)

    def _forget(self, removed: Inode) -> None:
        """Paths may have been resolved through what goes away, if it was a directory or a symbolic link."""
        if removed.entry.kind in (DIRECTORY, SYMLINK):
            self._parents.clear()

    def _mark(self, parent_path: bytes, name: bytes) -> None:
        upper = self._upper
        path = parent_path + b"/" + name if parent_path else name
        while path and path not in upper:
            upper.add(path)
            path = path.rpartition(b"/")[0]

    # resolving

    def _resolve(self, path: bytes) -> list[bytes]:
        """Names of the directory `path` with symbolic links followed inside the root; what is missing counts as plain."""
        names: list[bytes] = []
        nodes: list[Inode | None] = [self._root]  # nodes[i] is the node of names[:i], None if missing
        todo = path.split(b"/")[::-1]
        links = 0
        while todo:
            part = todo.pop()
            if part in (b"", b"."):
                continue
            if part == b"..":
                if names:
                    names.pop()
                    nodes.pop()
                continue
            here = nodes[-1]
            node = here.children.get(part) if isinstance(here, Directory) else None
            if node is not None and node.entry.kind == SYMLINK:
                links += 1
                if links > MAX_SYMLINKS:
                    raise _broken("too many symbolic links in a path")
                target = node.entry.link
                if target[:1] == b"/":
                    names.clear()
                    del nodes[1:]
                todo += target.split(b"/")[::-1]
                continue
            names.append(part)
            nodes.append(node)
        return names

    def _find(self, names: Sequence[bytes]) -> Inode | None:
        node: Inode | None = self._root
        for name in names:
            node = node.children.get(name) if isinstance(node, Directory) else None
        return node

    def _make_parents(self, path: bytes) -> tuple[Directory, bytes]:
        """The directory that `path` resolves to, made if missing, and its resolved path."""
        names = self._resolve(path)
        node = self._root
        for name in names:
            child = node.children.get(name)
            if child is None:
                if name.startswith(WHITEOUT):
                    raise _broken("a file below a whiteout")
                above = node.entry
                mode, gid = (0o755 | _SETGID, above.gid) if above.mode & _SETGID else (0o755, 0)  # as mkdir(2)
                child = node.children[name] = self._make_directory(Entry(b"", DIRECTORY, mode, 0, gid), name)
            elif not isinstance(child, Directory):
                raise _broken("the parent of a file is not a directory")
            node = child
        return node, b"/".join(names)

    def _link_target(self, entry: Entry) -> Inode:
        directory, _, name = entry.link.rpartition(b"/")
        known = self._parents.get(directory)
        parent = known[0] if known is not None else self._find(self._resolve(directory))
        target = parent.children.get(name) if isinstance(parent, Directory) else None
        if target is None or isinstance(target, Directory):
            raise _broken("a hard link to what is not a file")
        target.linked = True
        return target

    # whiteouts

    def _whiteout(self, path: bytes) -> bool:
        """Apply `path` if it is a whiteout; False if it is an ordinary file after all."""
        directory, _, name = path.rpartition(b"/")
        if not name.startswith(WHITEOUT):
            # Files below the bookkeeping directories of an aufs graph driver are none of the image's.
            return path.startswith(_AUFS_METADATA) or b"/" + _AUFS_METADATA in path
        names = self._resolve(directory)
        parent = self._find(names)
        if name == OPAQUE:
            if isinstance(parent, Directory):
                self._remove_lower(parent, b"/".join(names))
            return True
        if name.startswith(_AUFS_METADATA):
            return True
        name = name[len(WHITEOUT) :]
        if name in (b"", b".", b".."):
            raise _broken("a whiteout of nothing")
        if not isinstance(parent, Directory) or (target := parent.children.get(name)) is None:
            return True  # umoci, too, lets a whiteout find nothing
        resolved = b"/".join((*names, name))
        if resolved not in self._upper:
            self._forget(target)
            del parent.children[name]
        elif isinstance(target, Directory):
            self._remove_lower(target, resolved)
        return True

    def _remove_lower(self, directory: Directory, path: bytes) -> None:
        """Remove everything below `directory` that this layer did not bring."""
        upper = self._upper
        stack = [(directory, path)]
        while stack:
            node, path = stack.pop()
            prefix = path + b"/" if path else b""
            for name, child in list(node.children.items()):
                if prefix + name not in upper:
                    self._forget(child)
                    del node.children[name]
                elif isinstance(child, Directory):
                    stack.append((child, prefix + name))


# extended attributes


def _with_kept_xattrs(entry: Entry) -> Entry:
    """`entry` with the attributes that setxattr(2) would have kept, and the mode that an ACL implies."""
    kind, mode = entry.kind, entry.mode
    kept: dict[bytes, bytes] = {}
    for name, value in entry.xattrs.items():
        if name in _HOST_XATTRS or name.startswith(_OVERLAY_XATTR):
            continue
        if name in (ACL_ACCESS, ACL_DEFAULT):
            if kind == SYMLINK or (name == ACL_DEFAULT and kind != DIRECTORY):
                continue
            bits, extended = _acl_mode(value)
            if name == ACL_ACCESS:
                mode = (mode & 0o7000) | bits
                if not extended:
                    continue  # says no more than the mode does
        elif name.startswith(b"user."):
            if kind not in (FILE, DIRECTORY):
                continue
        elif not name.startswith((b"trusted.", b"security.")):
            continue  # no file system takes it
        kept[name] = value
    xattrs: Mapping[bytes, bytes] = kept or NO_XATTRS
    return entry._replace(mode=mode, xattrs=xattrs)


def _acl_mode(value: bytes) -> tuple[int, bool]:
    """Permission bits of an ACL (linux/posix_acl_xattr.h, version 2), and whether it says more than they do."""
    if len(value) < 4 or (len(value) - 4) % 8 or value[:4] != b"\2\0\0\0":
        raise _broken("a malformed ACL")
    bits = 0
    mask: int | None = None
    extended = False
    for tag, permissions, _ in struct.iter_unpack("<HHI", value[4:]):
        if permissions > 7:
            raise _broken("a malformed ACL")
        if tag == 0x01:
            bits |= permissions << 6
        elif tag == 0x04:
            bits |= permissions << 3
        elif tag == 0x20:
            bits |= permissions
        elif tag == 0x10:
            mask, extended = permissions, True
        elif tag in (0x02, 0x08):
            extended = True
        else:
            raise _broken("a malformed ACL")
    if mask is not None:
        bits = (bits & ~0o070) | mask << 3
    return bits, extended
