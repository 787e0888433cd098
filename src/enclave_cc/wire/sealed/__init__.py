"""The sealed block format (docs/formats/sealed.md)."""
