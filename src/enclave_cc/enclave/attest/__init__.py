"""The attester's side of RCAR: evidence out, resources in."""
