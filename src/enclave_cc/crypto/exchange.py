"""X25519 (RFC 7748)."""

from __future__ import annotations

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from enclave_cc.crypto.secret import Secret
from enclave_cc.errors import PeerError

SHARE_SIZE = 32


class KeyShare:
    """One ephemeral X25519 key pair, used for one exchange."""

    __slots__ = ("_private", "public")

    def __init__(self) -> None:
        self._private = X25519PrivateKey.generate()
        self.public: bytes = self._private.public_key().public_bytes_raw()

    def agree(self, peer_public: bytes) -> Secret:
        """The 32-byte shared secret. Raises `PeerError` for a share of low order, which would make it constant."""
        try:
            return Secret(self._private.exchange(X25519PublicKey.from_public_bytes(peer_public)))
        except ValueError as error:
            raise PeerError("handover-refused", "the peer's X25519 share is not usable") from error
