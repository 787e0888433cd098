"""Public-key signatures as cosign makes them: ECDSA P-256 or P-384, Ed25519, RSA PKCS#1 v1.5; keys as PEM.

sigstore `pkg/signature`: ECDSA signatures are DER, over SHA-256 (P-384 keys: also SHA-384).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.hashes import SHA256, SHA384

from enclave_cc.crypto.secret import Secret
from enclave_cc.errors import PeerError, UsageError

_RSA_BITS = (2048, 8192)  # below is weak, above costs a verifier seconds


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A key that verifies. `key_id` is the SHA-256 of its DER SubjectPublicKeyInfo, in hex."""

    _key: ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey | rsa.RSAPublicKey
    key_id: str

    @classmethod
    def from_pem(cls, pem: bytes) -> PublicKey:
        """Reads `BEGIN PUBLIC KEY`. Raises `PeerError("malformed")` for anything else, and for weak keys."""
        try:
            key = serialization.load_pem_public_key(pem)
        except (ValueError, UnsupportedAlgorithm) as error:
            raise PeerError("malformed", "the public key is not PEM of a kind that is known here") from error
        return cls._wrap(key)

    @classmethod
    def _wrap(cls, key: object) -> PublicKey:
        if isinstance(key, ec.EllipticCurvePublicKey):
            if not isinstance(key.curve, ec.SECP256R1 | ec.SECP384R1):
                raise PeerError("malformed", f"the public key's curve {key.curve.name} is not P-256 or P-384")
        elif isinstance(key, rsa.RSAPublicKey):
            if not _RSA_BITS[0] <= key.key_size <= _RSA_BITS[1]:
                raise PeerError("malformed", f"the public key's size of {key.key_size} bits is not in {_RSA_BITS}")
        elif not isinstance(key, ed25519.Ed25519PublicKey):
            raise PeerError("malformed", "the public key is not ECDSA, Ed25519 or RSA")
        spki = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
        return cls(key, hashlib.sha256(spki).hexdigest())

    def verify(self, signature: bytes, message: bytes) -> bytes:
        """Returns `message`. Raises `PeerError("signature-wrong")` unless `signature` over it is by this key."""
        try:
            if isinstance(self._key, ed25519.Ed25519PublicKey):
                self._key.verify(signature, message)
            elif isinstance(self._key, rsa.RSAPublicKey):
                self._key.verify(signature, message, padding.PKCS1v15(), SHA256())
            else:
                self._verify_ecdsa(self._key, signature, message)
        except InvalidSignature as error:
            raise PeerError("signature-wrong", "the signature is not by this key over these bytes") from error
        return message

    @staticmethod
    def _verify_ecdsa(key: ec.EllipticCurvePublicKey, signature: bytes, message: bytes) -> None:
        try:
            key.verify(signature, message, ec.ECDSA(SHA256()))
        except InvalidSignature:
            if not isinstance(key.curve, ec.SECP384R1):
                raise
            key.verify(signature, message, ec.ECDSA(SHA384()))

    def to_pem(self) -> bytes:
        return self._key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)

    def __repr__(self) -> str:
        return f"PublicKey({self.key_id[:16]})"


class SigningKey:
    """A private key that signs as cosign does."""

    __slots__ = ("_key", "public")

    def __init__(self, key: PrivateKeyTypes) -> None:
        if not isinstance(key, ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey):
            raise UsageError("usage", "the signing key is not ECDSA, Ed25519 or RSA")
        self._key = key
        try:
            self.public = PublicKey._wrap(key.public_key())
        except PeerError as error:
            raise UsageError("usage", error.what) from error

    @classmethod
    def generate(cls) -> SigningKey:
        """A new ECDSA P-256 key, cosign's default kind."""
        return cls(ec.generate_private_key(ec.SECP256R1()))

    @classmethod
    def from_pem(cls, pem: Secret) -> SigningKey:
        """Reads unencrypted PKCS#8, SEC1 or PKCS#1 PEM. Raises `UsageError("usage")`."""
        if b"ENCRYPTED SIGSTORE PRIVATE KEY" in pem.reveal() or b"ENCRYPTED COSIGN PRIVATE KEY" in pem.reveal():
            raise UsageError("usage", "the signing key is in cosign's encrypted form", "Give the key as unencrypted PKCS#8 PEM.")
        try:
            return cls(serialization.load_pem_private_key(pem.reveal(), None))
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:  # TypeError: it is encrypted
            raise UsageError("usage", "the signing key is not an unencrypted private key in PEM") from error

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
