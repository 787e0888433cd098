"""Encrypt, sign and push images."""
