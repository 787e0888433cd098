"""Supervisor to boot init: exec, signals, terminals."""
