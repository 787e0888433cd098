"""Where collateral comes from: the owner's own bundles, a directory, or a PCCS over HTTPS."""
