"""Formats that cross a trust boundary: bytes in, values out.

Runs: everywhere.
Trusts: nothing; input is always hostile, and parsers raise only `PeerError`.
Never: reaches a socket, a file, a clock or an event loop.
"""
