"""Labels, annotations and marks that containerd's CRI hands along. All of them are host-authored."""
