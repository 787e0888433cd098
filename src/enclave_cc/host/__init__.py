"""The node's side.

Runs: on the node's OS, as root, controlled by the cloud operator.
Trusts: the node.
Never: holds a key, or plaintext of an image.
"""
