"""Transparency logs: the Merkle tree of RFC 9162, and C2SP's notes, checkpoints and proofs."""
