"""`containerd-shim-rune-v2`: containerd's view of a pod of enclaves. One process a pod; the engine is `host.sandbox`."""
