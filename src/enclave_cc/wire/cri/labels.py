"""Names of the labels that CRI puts on snapshots of an image's layers while it pulls (containerd 1.6 to 2.x).

Source: containerd, pkg/snapshotters/annotations.go and snapshots/snapshotter.go.
"""

from __future__ import annotations

SNAPSHOT_REF = "containerd.io/snapshot.ref"  # the chain id that the prepared layer will have once committed
IMAGE_REF = "containerd.io/snapshot/cri.image-ref"
MANIFEST_DIGEST = "containerd.io/snapshot/cri.manifest-digest"
LAYER_DIGEST = "containerd.io/snapshot/cri.layer-digest"
IMAGE_LAYERS = "containerd.io/snapshot/cri.image-layers"
