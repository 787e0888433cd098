"""Process-based confidential containers: encrypted, signed OCI images run inside enclaves.

The tree follows who runs what and who controls it; `docs/architecture.md` names the zones, `.importlinter` holds
the contracts between them.
"""

__version__ = "0.1.0"
