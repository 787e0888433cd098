"""The launch statement, the host's overrides and the owner's launch policy (docs/formats/launch.md)."""
