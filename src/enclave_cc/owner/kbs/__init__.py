"""The key broker service."""
