"""The KBS's audit log: append, prove, export, verify. docs/formats/audit.md."""
