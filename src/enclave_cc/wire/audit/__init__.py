"""The audit log's entries and exports: docs/formats/audit.md."""
