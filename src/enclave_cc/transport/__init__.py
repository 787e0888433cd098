"""Byte movers: ttrpc over sockets, HTTPS with pinning, the registry's distribution API.

Runs: everywhere.
Trusts: nothing; it decides nothing but whether the peer is the one it was told to reach.
Never: waits without a deadline.
"""
