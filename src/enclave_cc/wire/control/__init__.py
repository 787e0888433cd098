"""Supervisor to boot init: exec, signals, terminals, state, and the status file (docs/formats/control.md)."""
