"""JSON Web Signatures in compact form (RFC 7515): ES256 and RS256 (RFC 7518), EdDSA with Ed25519 (RFC 8037).

The algorithm belongs to the key that verifies. A header that names another one, `none` included, is refused before
any signature is computed, so there is nothing to confuse.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
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


_RSA_BITS = range(2048, 8193)

_Key = ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey | rsa.RSAPublicKey


class VerifyKey:
    """An ES256, EdDSA or RS256 public key. `kid` is its thumbprint (RFC 7638), by which key sets and headers name it."""

    __slots__ = ("_key", "algorithm", "kid")

    def __init__(self, key: _Key) -> None:
        self._key = key
        self.algorithm = "EdDSA"
        if isinstance(key, ec.EllipticCurvePublicKey | rsa.RSAPublicKey):
            self.algorithm = "ES256" if isinstance(key, ec.EllipticCurvePublicKey) else "RS256"
        required = {name: value for name, value in self.to_jwk().items() if name != "alg"}
        digest = hashlib.sha256(json.dumps(required, sort_keys=True, separators=(",", ":")).encode()).digest()
        self.kid = base64url.encode(digest)

    @classmethod
    def wrap(cls, key: object) -> VerifyKey:
        """A key object of `cryptography`. Raises `UsageError("bad-config")` unless it is of a kind known here."""
        if isinstance(key, ed25519.Ed25519PublicKey):
            return cls(key)
        if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1):
            return cls(key)
        if isinstance(key, rsa.RSAPublicKey) and key.key_size in _RSA_BITS:
            return cls(key)
        raise UsageError("bad-config", "a public key is neither Ed25519, P-256 nor RSA of at least 2048 bits")

    @classmethod
    def from_pem(cls, pem: bytes) -> VerifyKey:
        """From SubjectPublicKeyInfo PEM. Raises `UsageError("bad-config")`: keys come from our own configuration."""
        try:
            key = load_pem_public_key(pem)
        except (ValueError, UnsupportedAlgorithm) as error:
            raise UsageError("bad-config", "a public key is not PEM") from error
        return cls.wrap(key)

    @classmethod
    def from_jwk(cls, jwk: Mapping[str, object]) -> VerifyKey:
        """From a public JWK (RFC 7517); members beside the key's own are not looked at.

        Raises `PeerError("malformed")` for anything but P-256, Ed25519, and RSA of at least 2048 bits.
        """
        try:
            match jwk.get("kty"), jwk.get("crv"):
                case "EC", "P-256":
                    x, y = (_take_bytes(jwk, name, 32) for name in ("x", "y"))
                    key: object = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), b"\x04" + x + y)
                case "OKP", "Ed25519":
                    key = ed25519.Ed25519PublicKey.from_public_bytes(_take_bytes(jwk, "x", 32))
                case "RSA", _:
                    n, e = (int.from_bytes(_take_bytes(jwk, name, None)) for name in ("n", "e"))
                    key = rsa.RSAPublicNumbers(e, n).public_key()
                case _:
                    raise PeerError("malformed", "the key is of a kind that verifies no token here")
            return cls.wrap(key)
        except (ValueError, UsageError) as error:
            raise PeerError("malformed", "the key cannot verify a token") from error

    def to_pem(self) -> bytes:
        return self._key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)

    def to_jwk(self) -> dict[str, str]:
        """The public JWK, `alg` included."""
        if isinstance(self._key, ec.EllipticCurvePublicKey):
            return ec_members(self._key, "ES256")
        if isinstance(self._key, rsa.RSAPublicKey):
            numbers = self._key.public_numbers()
            n, e = (base64url.encode(each.to_bytes((each.bit_length() + 7) // 8)) for each in (numbers.n, numbers.e))
            return {"kty": "RSA", "alg": "RS256", "n": n, "e": e}
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
        parts = _split(token)
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
            elif isinstance(self._key, rsa.RSAPublicKey):
                self._key.verify(signature, signed, padding.PKCS1v15(), SHA256())
            else:
                self._key.verify(signature, signed)
        except InvalidSignature as error:
            raise PeerError("unauthenticated", "the token's signature is wrong") from error
        # 4
        return header, _parse_object(payload_raw)


def read_header(token: str) -> dict[str, Any]:
    """The header of a compact JWS, NOT VERIFIED: only to choose among keys that are trusted anyway.

    Raises `PeerError("unauthenticated")`.
    """
    return _parse_object(base64url.decode(_split(token)[0], "the token's header", code="unauthenticated"))


def read_payload(token: str) -> dict[str, Any]:
    """The payload of a compact JWS, NOT VERIFIED: of one that was signed here. Raises `PeerError("unauthenticated")`."""
    return _parse_object(base64url.decode(_split(token)[1], "the token's payload", code="unauthenticated"))


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


def _split(token: str) -> list[str]:
    parts = token.split(".", 3) if len(token) <= MAX_SIZE else []
    if len(parts) != 3:
        raise PeerError("unauthenticated", "the token is not a compact JWS")
    return parts


def _take_bytes(jwk: Mapping[str, object], name: str, size: int | None) -> bytes:
    value = jwk.get(name)
    if not isinstance(value, str) or len(value) > 2048:
        raise PeerError("malformed", f"the key has no member {name}")
    data = base64url.decode(value, f"the key's {name}")
    if size is not None and len(data) != size:
        raise PeerError("malformed", f"the key's {name} is not {size} bytes")
    return data


def _parse_object(raw: bytes) -> dict[str, Any]:
    """Strict: a repeated member or a number that is not finite would mean different things to different readers."""
    try:
        value = json.loads(raw.decode(), object_pairs_hook=_refuse_repeats, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise PeerError("unauthenticated", "a part of the token is not JSON") from error
    if not isinstance(value, dict):
        raise PeerError("unauthenticated", "a part of the token is not a JSON object")
    return value


def _refuse_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("repeated member")
    return value


def _refuse_constant(text: str) -> None:
    raise ValueError(text)
