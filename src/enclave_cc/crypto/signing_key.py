"""Private keys that sign as cosign does; the owner's side of `crypto.signature`."""

from __future__ import annotations

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.hashes import SHA256

from enclave_cc.crypto import sigstore_key
from enclave_cc.crypto.secret import Secret
from enclave_cc.crypto.signature import PublicKey
from enclave_cc.errors import PeerError, UsageError


class SigningKey:
    """A private key that signs as cosign does."""

    __slots__ = ("_key", "public")

    def __init__(self, key: PrivateKeyTypes) -> None:
        if not isinstance(key, ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey):
            raise UsageError("usage", "the signing key is not ECDSA, Ed25519 or RSA")
        self._key = key
        try:
            self.public = PublicKey.wrap(key.public_key())
        except PeerError as error:
            raise UsageError("usage", error.what) from error

    @classmethod
    def generate(cls) -> SigningKey:
        """A new ECDSA P-256 key, cosign's default kind."""
        return cls(ec.generate_private_key(ec.SECP256R1()))

    @classmethod
    def from_pem(cls, pem: Secret, password: Secret | None = None) -> SigningKey:
        """Reads PKCS#8, SEC1 or PKCS#1 PEM, or a key of `cosign generate-key-pair`, which needs its `password`.

        Raises `UsageError("usage")`.
        """
        try:
            if sigstore_key.is_encrypted(pem):
                return cls(serialization.load_der_private_key(sigstore_key.decrypt(pem, password).reveal(), None))
            return cls(serialization.load_pem_private_key(pem.reveal(), None))
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:  # TypeError: it is encrypted in PKCS#8's way
            raise UsageError("usage", "the signing key is not an unencrypted private key in PEM, nor one of cosign's") from error

    def to_pem(self) -> Secret:
        """Unencrypted PKCS#8."""
        return Secret(
            self._key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        )

    def sign(self, message: bytes) -> bytes:
        """DER (ECDSA), 64 bytes (Ed25519) or as long as the modulus (RSA)."""
        if isinstance(self._key, ed25519.Ed25519PrivateKey):
            return self._key.sign(message)
        if isinstance(self._key, rsa.RSAPrivateKey):
            return self._key.sign(message, padding.PKCS1v15(), SHA256())
        return self._key.sign(message, ec.ECDSA(SHA256()))
