"""A software SGX platform for machines without SGX: fake hardware under a root of its own.

Runs: in development, CI and the demo.
Trusts: the kernel of the machine it runs on.
Never: is trusted by default; the owner must name its root, and everything it signs says that it is simulated.
"""
