"""Public-key signatures as cosign makes them: ECDSA P-256 or P-384, Ed25519, RSA PKCS#1 v1.5; keys as PEM.

sigstore `pkg/signature`: ECDSA signatures are DER, over SHA-256 (P-384 keys: also SHA-384).
"""

from __future__ import annotations

import hashlib

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.hashes import SHA256, SHA384

from enclave_cc.errors import PeerError
from enclave_cc.record import record

_RSA_BITS = (2048, 8192)  # below is weak, above costs a verifier seconds


@record
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
        return cls.wrap(key)

    @classmethod
    def wrap(cls, key: object) -> PublicKey:
        """A key object of `cryptography`. Raises `PeerError("malformed")` unless it is of a kind and size accepted here."""
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
