"""The sealed blob format: blocks, descriptors, rootfs descriptors (docs/formats/sealed.md).

Runs: everywhere.
Trusts: nothing; a block is used only after it opened.
Never: touches a file; bytes in, values out.
"""
