"""The only importer of `cryptography`.

Runs: everywhere.
Trusts: its callers to keep nonces unique and keys secret.
Never: reaches a socket, a file, a clock or an event loop.
"""
