"""JSON Web Signatures in compact form (RFC 7515) for two keys: ES256 (RFC 7518) and EdDSA with Ed25519 (RFC 8037).

The algorithm belongs to the key that verifies. A header that names another one, `none` included, is refused before
any signature is computed, so there is nothing to confuse.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from enclave_cc.crypto import base64url
from enclave_cc.crypto.jwk import ec_members
from enclave_cc.errors import PeerError, UsageError

# An EAR token with annotated evidence of one enclave is about 6 kB.
MAX_SIZE = 256 * 1024


class VerifyKey:
    """An ES256 or EdDSA public key."""

    __slots__ = ("_key", "algorithm")

    def __init__(self, key: ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey) -> None:
        self._key = key
        self.algorithm = "ES256" if isinstance(key, ec.EllipticCurvePublicKey) else "EdDSA"

    @classmethod
    def from_pem(cls, pem: bytes) -> VerifyKey:
        """From SubjectPublicKeyInfo PEM. Raises `UsageError("bad-config")`: keys come from our own configuration."""
        try:
            key = load_pem_public_key(pem)
        except (ValueError, UnsupportedAlgorithm) as error:
            raise UsageError("bad-config", "a public key is not PEM") from error
        if isinstance(key, ed25519.Ed25519PublicKey):
            return cls(key)
        if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1):
            return cls(key)
        raise UsageError("bad-config", "a public key is neither Ed25519 nor P-256")

    def to_pem(self) -> bytes:
        return self._key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)

    def to_jwk(self) -> dict[str, str]:
        """The public JWK, `alg` included."""
        if isinstance(self._key, ec.EllipticCurvePublicKey):
            return ec_members(self._key, "ES256")
        return {"kty": "OKP", "crv": "Ed25519", "alg": "EdDSA", "x": base64url.encode(self._key.public_bytes_raw())}

    def verify(self, token: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """(header, payload) of a compact JWS whose payload is a JSON object.

        1. Three base64url parts, not larger than `MAX_SIZE`.
        2. The header is a JSON object, names this key's algorithm, and asks for no extension (`crit`).
        3. The signature verifies over the first two parts as received.
        4. The payload is a JSON object.

        Raises `PeerError("unauthenticated")`. Times are the caller's to check: this module has no clock.
        """
        # 1
        parts = token.split(".")
        if len(token) > MAX_SIZE or len(parts) != 3:
            raise PeerError("unauthenticated", "the token is not a compact JWS")
        header_raw, payload_raw, signature = (base64url.decode(p, "a part of the token", code="unauthenticated") for p in parts)
        # 2
        header = _parse_object(header_raw)
        if header.get("alg") != self.algorithm or "crit" in header:
            raise PeerError("unauthenticated", f"the token is not signed with {self.algorithm}")
        # 3
        signed = f"{parts[0]}.{parts[1]}".encode()
        try:
            if isinstance(self._key, ec.EllipticCurvePublicKey):
                if len(signature) != 64:
                    raise PeerError("unauthenticated", "the token's signature has another size")
                r, s = int.from_bytes(signature[:32]), int.from_bytes(signature[32:])
                self._key.verify(encode_dss_signature(r, s), signed, ec.ECDSA(SHA256()))
            else:
                self._key.verify(signature, signed)
        except InvalidSignature as error:
            raise PeerError("unauthenticated", "the token's signature is wrong") from error
        # 4
        return header, _parse_object(payload_raw)


class SigningKey:
    """An ES256 or EdDSA private key."""

    __slots__ = ("_key", "public")

    def __init__(self, key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey) -> None:
        self._key = key
        self.public = VerifyKey(key.public_key())

    @classmethod
    def generate(cls, algorithm: str) -> SigningKey:
        """A fresh "ES256" or "EdDSA" key."""
        if algorithm == "ES256":
            return cls(ec.generate_private_key(ec.SECP256R1()))
        return cls(ed25519.Ed25519PrivateKey.generate())

    @classmethod
    def from_pem(cls, pem: bytes) -> SigningKey:
        """From PKCS#8 PEM. Raises `UsageError("bad-config")`."""
        try:
            key = load_pem_private_key(pem, None)
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise UsageError("bad-config", "a private key is not unencrypted PEM") from error
        if isinstance(key, ed25519.Ed25519PrivateKey):
            return cls(key)
        if isinstance(key, ec.EllipticCurvePrivateKey) and isinstance(key.curve, ec.SECP256R1):
            return cls(key)
        raise UsageError("bad-config", "a private key is neither Ed25519 nor P-256")

    def to_pem(self) -> bytes:
        """PKCS#8."""
        return self._key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    def sign(self, payload: Mapping[str, object], header: Mapping[str, object] | None = None) -> str:
        """`payload` as a compact JWS; `header` adds members to `typ` and `alg`."""
        full = {"typ": "JWT", "alg": self.public.algorithm, **(header or {})}
        parts = [base64url.encode(json.dumps(part, separators=(",", ":")).encode()) for part in (full, payload)]
        signed = ".".join(parts).encode()
        if isinstance(self._key, ec.EllipticCurvePrivateKey):
            r, s = decode_dss_signature(self._key.sign(signed, ec.ECDSA(SHA256())))
            signature = r.to_bytes(32) + s.to_bytes(32)
        else:
            signature = self._key.sign(signed)
        return ".".join([*parts, base64url.encode(signature)])

    def __repr__(self) -> str:
        return f"SigningKey({self.public.algorithm})"


def _parse_object(raw: bytes) -> dict[str, Any]:
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise PeerError("unauthenticated", "a part of the token is not JSON") from error
    if not isinstance(value, dict):
        raise PeerError("unauthenticated", "a part of the token is not a JSON object")
    return value
