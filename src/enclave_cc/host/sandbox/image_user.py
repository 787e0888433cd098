"""A user that only the image itself knows, as host programs hand it on.

The node never sees an enclave image's files, so it cannot resolve the image's USER. The snapshotter offers containerd a
passwd and group file in which that name has these numbers, and the shim reads them as "the user of the image", which the
agent takes from the verified image configuration.
"""

from __future__ import annotations

# Below 2**31, containerd's limit, and far from what images and clusters use.
UID = 2_147_480_001
GID = 2_147_480_001
