"""TEE keys as JSON Web Keys (RFC 7517, RFC 7518 section 6), the forms of RCAR 0.4.0.

    EC   {"kty":"EC","crv":"P-256"|"P-521","alg":"ECDH-ES+A256KW","x","y"}
    RSA  {"kty":"RSA","alg":"RSA-OAEP-256","n","e"}

Upstream also knows `RSA1_5`, which is deprecated: it makes the attester a padding oracle. It is refused unless the
caller says `rsa1_5`.
"""

from __future__ import annotations

from collections.abc import Mapping

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from enclave_cc.crypto import base64url
from enclave_cc.errors import PeerError, foreign
from enclave_cc.record import record

ECDH_ES_A256KW = "ECDH-ES+A256KW"
RSA_OAEP_256 = "RSA-OAEP-256"
RSA1_5 = "RSA1_5"

_CURVES: dict[str, ec.EllipticCurve] = {"P-256": ec.SECP256R1(), "P-521": ec.SECP521R1()}
# 2048 is what guest-components makes; more than 4096 only costs us time on a hostile key.
_RSA_BITS = range(2048, 4097)


@record
class PublicJwk:
    """A TEE public key that was parsed and lies on its curve, or has a sane modulus.

    `members` are exactly the members RCAR knows: others were dropped, because the report data hash covers the key
    as upstream's KBS re-serialises it.
    """

    members: Mapping[str, str]
    key: ec.EllipticCurvePublicKey | rsa.RSAPublicKey

    @property
    def algorithm(self) -> str:
        return self.members["alg"]

    @classmethod
    def parse(cls, value: object, *, rsa1_5: bool = False) -> PublicJwk:
        """The key of a decoded JSON object; `rsa1_5` admits the deprecated form. Raises `PeerError("malformed")`."""
        if not isinstance(value, Mapping):
            raise PeerError("malformed", "the TEE public key is not a JSON object")
        match value.get("kty"):
            case "EC":
                return cls._parse_ec(_take(value, "kty", "crv", "alg", "x", "y"))
            case "RSA":
                return cls._parse_rsa(_take(value, "kty", "alg", "n", "e"), (RSA_OAEP_256, RSA1_5) if rsa1_5 else (RSA_OAEP_256,))
            case other:
                raise PeerError("malformed", f"the TEE public key is of kind {foreign(other)!r}; EC and RSA are known")

    @classmethod
    def _parse_ec(cls, members: dict[str, str]) -> PublicJwk:
        curve = _CURVES.get(members["crv"])
        if curve is None or members["alg"] != ECDH_ES_A256KW:
            raise PeerError("malformed", f"an EC TEE key needs P-256 or P-521 and {ECDH_ES_A256KW}")
        size = (curve.key_size + 7) // 8
        x, y = (base64url.decode(members[name], f"coordinate {name} of the TEE key") for name in ("x", "y"))
        if len(x) != size or len(y) != size:
            raise PeerError("malformed", f"a coordinate of the TEE key is not {size} bytes")
        try:
            key = ec.EllipticCurvePublicNumbers(int.from_bytes(x), int.from_bytes(y), curve).public_key()
        except ValueError as error:
            raise PeerError("malformed", "the TEE key is not a point of its curve") from error
        return cls(members, key)

    @classmethod
    def _parse_rsa(cls, members: dict[str, str], algorithms: tuple[str, ...]) -> PublicJwk:
        if members["alg"] not in algorithms:
            raise PeerError("malformed", f"an RSA TEE key needs {' or '.join(algorithms)}")
        if len(members["n"]) > 1024 or len(members["e"]) > 16:
            raise PeerError("malformed", "the RSA TEE key is too large")
        modulus = int.from_bytes(base64url.decode(members["n"], "modulus of the TEE key"))
        exponent = int.from_bytes(base64url.decode(members["e"], "exponent of the TEE key"))
        if modulus.bit_length() not in _RSA_BITS or exponent < 3:
            raise PeerError("malformed", f"the RSA TEE key has not {_RSA_BITS.start} to {_RSA_BITS.stop - 1} bits")
        try:
            key = rsa.RSAPublicNumbers(exponent, modulus).public_key()
        except ValueError as error:
            raise PeerError("malformed", "the RSA TEE key is not usable") from error
        return cls(members, key)


def _take(value: Mapping[object, object], *names: str) -> dict[str, str]:
    members = {}
    for name in names:
        member = value.get(name)
        if not isinstance(member, str):
            raise PeerError("malformed", f"the TEE public key has no text member {name!r}")
        members[name] = member
    return members


def ec_members(key: ec.EllipticCurvePublicKey, algorithm: str) -> dict[str, str]:
    """`key` (P-256 or P-521) as the members of a public JWK with `alg`."""
    name = "P-256" if isinstance(key.curve, ec.SECP256R1) else "P-521"
    size = (key.curve.key_size + 7) // 8
    numbers = key.public_numbers()
    return {
        "kty": "EC",
        "crv": name,
        "alg": algorithm,
        "x": base64url.encode(numbers.x.to_bytes(size)),
        "y": base64url.encode(numbers.y.to_bytes(size)),
    }


class TeeKey:
    """A TEE key pair: made inside the enclave, its public half goes into the report data."""

    __slots__ = ("private", "public")

    def __init__(self, private: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> None:
        self.private = private
        self.public = PublicJwk.parse(_public_members(private))

    @classmethod
    def generate(cls, kind: str = "P-256") -> TeeKey:
        """A fresh key: "P-256" (upstream's default, 0.1 ms), "P-521", or "RSA" (2048 bits, 100 ms)."""
        if kind == "RSA":
            return cls(rsa.generate_private_key(65537, 2048))
        return cls(ec.generate_private_key(_CURVES[kind]))

    @classmethod
    def from_pem(cls, pem: bytes) -> TeeKey:
        """From PKCS#1 (RSA) or PKCS#8 PEM, as upstream's `--tee-key-file`. Raises `PeerError("malformed")`."""
        from cryptography.hazmat.primitives.serialization import load_pem_private_key  # 8 ms, and no agent needs it

        try:
            private = load_pem_private_key(pem, None)
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise PeerError("malformed", "the TEE key file is not an unencrypted PEM private key") from error
        if not isinstance(private, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey):
            raise PeerError("malformed", "the TEE key file holds neither an EC nor an RSA key")
        return cls(private)

    def to_pem(self) -> bytes:
        """PKCS#1 for RSA, PKCS#8 for EC: what upstream reads."""
        from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

        form = PrivateFormat.PKCS8 if isinstance(self.private, ec.EllipticCurvePrivateKey) else PrivateFormat.TraditionalOpenSSL
        return self.private.private_bytes(Encoding.PEM, form, NoEncryption())

    def __repr__(self) -> str:
        return f"TeeKey({self.public.members['kty']})"


def _public_members(private: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> dict[str, str]:
    if isinstance(private, ec.EllipticCurvePrivateKey):
        if not isinstance(private.curve, ec.SECP256R1 | ec.SECP521R1):
            raise PeerError("malformed", "the TEE key is on another curve than P-256 and P-521")
        return ec_members(private.public_key(), ECDH_ES_A256KW)
    numbers = private.public_key().public_numbers()
    return {
        "kty": "RSA",
        "alg": RSA_OAEP_256,
        "n": base64url.encode(numbers.n.to_bytes((numbers.n.bit_length() + 7) // 8)),
        "e": base64url.encode(numbers.e.to_bytes((numbers.e.bit_length() + 7) // 8)),
    }
