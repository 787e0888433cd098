"""Agent to app key release by mutual local attestation; both roles, sans-io (docs/formats/handover.md)."""
