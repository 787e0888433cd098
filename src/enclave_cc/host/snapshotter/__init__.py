"""containerd's snapshotter of this node: ordinary images by overlayfs, enclave images not at all, for the agent pulls them."""
