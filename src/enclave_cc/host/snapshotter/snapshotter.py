"""The operations of a snapshotter, in the semantics of containerd's overlayfs, and guest pull for enclave images.

Guest pull: while containerd pulls an image, it asks for a snapshot per layer, and names the stack of layers that this
snapshot will become (`containerd.io/snapshot.ref`). For an enclave image the answer is "already exists", backed by a
committed snapshot with that label and nothing in it; so containerd downloads no layer. A container on top of such a
snapshot gets an empty root file system, with a passwd and a group file for the USER that the image names.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from enclave_cc.errors import UsageError, foreign
from enclave_cc.host.sandbox import known_images
from enclave_cc.host.snapshotter import filters, user_files
from enclave_cc.host.snapshotter.images import ContentStore
from enclave_cc.host.snapshotter.overlay import Overlay, Usage
from enclave_cc.host.snapshotter.store import Snapshot, Store
from enclave_cc.wire.cri import labels as cri
from enclave_cc.wire.pb.snapshots import Kind, Mount


class Snapshotter:
    """Safe for many threads. Errors are `UsageError` (what was asked) and `EnvironmentFault` (disk, database)."""

    def __init__(self, store: Store, overlay: Overlay, images: ContentStore) -> None:
        self._store = store
        self._overlay = overlay
        self._images = images
        # Held while a directory is made whose row is not committed yet, so that no cleaning takes it for an orphan.
        self._making = threading.Lock()

    # --- making

    def prepare(self, key: str, parent: str, labels: Mapping[str, str]) -> tuple[Mount, ...]:
        """Raises `UsageError("already-exists")` also for a layer that lies inside the enclave."""
        target = labels.get(cri.SNAPSHOT_REF, "")
        if target and self._is_guest_layer(target, labels):
            self._record_guest_layer(target, parent, labels)
            raise UsageError("already-exists", f"the layers {foreign(target)} are the enclave's to pull")
        if target and parent and self._store.get(parent).guest:
            raise UsageError(
                "wrong-state",
                f"an ordinary image shares lower layers with an enclave image, and they are not on this host ({foreign(parent)})",
                "Remove the enclave image from containerd, pull the ordinary one first, then the other again.",
            )
        return self._create(Kind.ACTIVE, key, parent, labels)

    def view(self, key: str, parent: str, labels: Mapping[str, str]) -> tuple[Mount, ...]:
        return self._create(Kind.VIEW, key, parent, labels)

    def _create(self, kind: Kind, key: str, parent: str, labels: Mapping[str, str]) -> tuple[Mount, ...]:
        with self._making, self._store.transaction():
            snapshot = self._store.insert(key, parent, kind, labels)
            above = self._store.get(parent) if parent else None
            guest = above is not None and above.guest
            files = self._make_guest_files(key, above) if above is not None and guest else {}
            owner = self._overlay.upper(above.id) if above is not None and not guest else None
            self._overlay.make(snapshot.id, kind, owner, files)
        return self._mounts(snapshot)

    def commit(self, name: str, key: str, parent: str, labels: Mapping[str, str]) -> None:
        found = self._store.get(key)
        usage = self._overlay.measure(found.id) if found.kind is Kind.ACTIVE else Usage(0, 0)
        with self._store.transaction():
            self._store.commit(name, key, parent, labels, usage.size, usage.inodes)

    def update(self, name: str, labels: Mapping[str, str], paths: Sequence[str]) -> Snapshot:
        """`paths`: `labels` or `labels.KEY`, or none for all labels. Raises `UsageError("usage")` for what cannot change."""
        with self._store.transaction():
            updated = dict(self._store.get(name).labels)
            for path in paths or ("labels",):
                if path == "labels":
                    updated = dict(labels)
                elif path.startswith("labels."):
                    key = path.removeprefix("labels.")
                    updated[key] = labels.get(key, "")
                else:
                    raise UsageError("usage", f"{foreign(path)} of the snapshot {foreign(name)} cannot be changed")
            return self._store.relabel(name, updated)

    # --- looking

    def stat(self, key: str) -> Snapshot:
        return self._store.get(key)

    def mounts(self, key: str) -> tuple[Mount, ...]:
        """Raises `UsageError("wrong-state")` for a committed snapshot."""
        snapshot = self._store.get(key)
        if snapshot.kind is Kind.COMMITTED:
            raise UsageError("wrong-state", f"the snapshot {foreign(key)} is committed, not active or a view")
        return self._mounts(snapshot)

    def usage(self, key: str) -> Usage:
        snapshot = self._store.get(key)
        if snapshot.kind is Kind.ACTIVE:
            return self._overlay.measure(snapshot.id)
        return Usage(snapshot.size, snapshot.inodes)

    def walk(self, texts: Sequence[str]) -> Iterator[Snapshot]:
        matches = filters.parse_all(texts)
        return (s for s in self._store.read_all() if matches(filters.Subject(s.name, s.parent, s.kind, s.labels)))

    def _mounts(self, snapshot: Snapshot) -> tuple[Mount, ...]:
        ancestors = self._store.ancestors(snapshot)
        lower: list[Path] = []
        for ancestor in ancestors:
            if ancestor.guest:  # nothing of an enclave image's container is on the host, shared lower layers included
                lower.append(self._overlay.empty)
                break
            lower.append(self._overlay.upper(ancestor.id))
        if snapshot.kind is Kind.VIEW and ancestors and ancestors[0].guest:
            return self._overlay.mounts(snapshot.id, snapshot.kind, ())  # its own directory, with the user files
        return self._overlay.mounts(snapshot.id, snapshot.kind, lower)

    # --- removing

    def remove(self, key: str) -> None:
        """The snapshot is gone when its row is; its directory follows, by the next start at the latest."""
        with self._store.transaction():
            removed = self._store.remove(key)
        self._overlay.discard(self._overlay.snapshots / str(removed.id))

    def cleanup(self) -> None:
        """Removes directories of no snapshot."""
        with self._making:
            doomed = self._overlay.set_aside(self._store.ids())
        for directory in doomed:
            self._overlay.discard(directory)

    # --- guest pull

    def _is_guest_layer(self, target: str, labels: Mapping[str, str]) -> bool:
        digest = labels.get(cri.MANIFEST_DIGEST)
        image = self._images.find(digest) if digest else None
        if image is not None:
            return image.encrypted
        # A client that names no manifest (`ctr images pull`): the stack of layers tells, if it is no ordinary image's too.
        images = self._images.find_by_chain(target)
        return bool(images) and all(image.encrypted for image in images)

    def _record_guest_layer(self, target: str, parent: str, labels: Mapping[str, str]) -> None:
        with self._store.transaction():
            for snapshot in self._store.find_labelled(cri.SNAPSHOT_REF, target):
                if snapshot.guest and snapshot.parent == parent:
                    return  # of another namespace, or of a pull that was cut off
            name = f"enclave-cc/{os.urandom(8).hex()}/{target}"
            self._store.insert(name, parent, Kind.COMMITTED, labels, guest=True)

    def _make_guest_files(self, key: str, parent: Snapshot) -> dict[str, str]:
        """What CRI and our shim look for in the root file system of a container."""
        target = parent.labels.get(cri.SNAPSHOT_REF, "")
        found = [image for image in self._images.find_by_chain(target) if image.chain[-1] == target]
        images = [image for image in found if image.encrypted]
        if len(images) < len(found):
            print(
                f"enclave-cc-snapshotter: {foreign(key)} may be of an ordinary image whose layers equal those of an enclave image;"
                " its root file system is empty then",
                file=sys.stderr,
                flush=True,
            )
        users = {image.user for image in images if image.user}
        known = {image.manifest_digest: image.config_digest for image in images}
        files = {known_images.FILE: known_images.encode(known)} if known else {}
        if users:
            files |= {"etc/passwd": user_files.make_passwd(users), "etc/group": user_files.make_group(users)}
        return files
