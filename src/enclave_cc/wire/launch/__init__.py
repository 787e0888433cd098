"""The launch statement and the owner's launch policy."""
