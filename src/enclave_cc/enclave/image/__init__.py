"""From a reference to verified, decrypted layers."""
