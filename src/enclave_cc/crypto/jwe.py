"""JSON Web Encryption (RFC 7516), flattened JSON, as RCAR's Response carries a resource.

    {"protected": b64u(header), "encrypted_key": b64u, "iv": b64u(12), "ciphertext": b64u, "tag": b64u(16)}

Content: AES-256-GCM, additional data = the ASCII of `protected`. Key: ECDH-ES with Concat KDF and AES-256 key wrap
(RFC 7518 section 4.6, RFC 3394), or RSA-OAEP with SHA-256; RSA1_5 is written for keys that ask for it, never read.

The header's spelling matters more than RFC 7516 asks: guest-components parses it and serialises it again to get the
additional data, so it must be compact JSON, `alg` then `enc` then `epk`, the members of `epk` in alphabetical order.
When reading, the received text itself is the additional data, in whatever order it came.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.keywrap import InvalidUnwrap, aes_key_unwrap, aes_key_wrap

from enclave_cc.crypto import aead, base64url, kdf
from enclave_cc.crypto.jwk import ECDH_ES_A256KW, RSA1_5, PublicJwk, TeeKey, ec_members
from enclave_cc.crypto.secret import Secret
from enclave_cc.errors import PeerError, foreign

A256GCM = "A256GCM"
CEK_SIZE = 32
# AlgorithmID, empty PartyUInfo and PartyVInfo, SuppPubInfo = 256 bits (RFC 7518 section 4.6.2).
_OTHER_INFO = len(ECDH_ES_A256KW).to_bytes(4) + ECDH_ES_A256KW.encode() + bytes(8) + (256).to_bytes(4)
_OAEP = padding.OAEP(mgf=padding.MGF1(SHA256()), algorithm=SHA256(), label=None)


def encrypt(plaintext: bytes, recipient: PublicJwk) -> bytes:
    """`plaintext` for `recipient`, as JSON text. A fresh key, nonce and ephemeral key each time."""
    cek = Secret.random(CEK_SIZE)
    header: dict[str, object] = {"alg": recipient.algorithm, "enc": A256GCM}
    if isinstance(recipient.key, ec.EllipticCurvePublicKey):
        ephemeral = ec.generate_private_key(recipient.key.curve)
        wrapped = aes_key_wrap(_derive_kek(ephemeral, recipient.key).reveal(), cek.reveal())
        members = ec_members(ephemeral.public_key(), "")
        header["epk"] = {name: members[name] for name in ("crv", "kty", "x", "y")}
    else:
        wrapped = recipient.key.encrypt(cek.reveal(), padding.PKCS1v15() if recipient.algorithm == RSA1_5 else _OAEP)
    protected = base64url.encode(json.dumps(header, separators=(",", ":")).encode())
    nonce = os.urandom(aead.NONCE_SIZE)
    sealed = aead.Aead(cek).encrypt(nonce, plaintext, protected.encode())
    answer = {
        "protected": protected,
        "encrypted_key": base64url.encode(wrapped),
        "iv": base64url.encode(nonce),
        "ciphertext": base64url.encode(sealed[: -aead.TAG_SIZE]),
        "tag": base64url.encode(sealed[-aead.TAG_SIZE :]),
    }
    return json.dumps(answer, separators=(",", ":")).encode()


def decrypt(text: bytes, key: TeeKey) -> Secret:
    """The plaintext of a flattened JWE for `key`.

    Raises `PeerError("malformed")` when it is not one, `PeerError("jwe-broken")` when it is not for this key or was
    changed.
    """
    message = _parse_object(text, "the encrypted answer")
    protected = message.get("protected")
    header = _parse_object(base64url.decode(protected, "the JWE header"), "the JWE header")
    wrapped, nonce, ciphertext, tag = (
        base64url.decode(message.get(name), f"JWE member {name}") for name in ("encrypted_key", "iv", "ciphertext", "tag")
    )
    if "aad" in message:
        raise PeerError("malformed", "the encrypted answer has a JWE member aad, which RCAR does not use")
    if header.get("enc") != A256GCM or "crit" in header or "zip" in header:
        raise PeerError("malformed", f"the encrypted answer is not {A256GCM}, or asks for an extension")
    if len(nonce) != aead.NONCE_SIZE or len(tag) != aead.TAG_SIZE:
        raise PeerError("malformed", "the encrypted answer has a nonce or tag of another size")
    cek = _unwrap(header, wrapped, key)
    plaintext = aead.Aead(cek).decrypt(nonce, ciphertext + tag, str(protected).encode(), code="jwe-broken")
    return Secret(plaintext)


def _unwrap(header: Mapping[str, Any], wrapped: bytes, key: TeeKey) -> Secret:
    # The algorithm is the key's own, not the header's: a header cannot choose how our private key is used.
    if header.get("alg") != key.public.algorithm:
        raise PeerError("jwe-broken", f"the answer is encrypted with {foreign(header.get('alg'))}, not for this key")
    try:
        if isinstance(key.private, rsa.RSAPrivateKey):
            cek = key.private.decrypt(wrapped, _OAEP)
        else:
            epk = header.get("epk")
            sender = PublicJwk.parse({**epk, "alg": ECDH_ES_A256KW} if isinstance(epk, Mapping) else None)
            if not isinstance(sender.key, ec.EllipticCurvePublicKey) or sender.members["crv"] != key.public.members["crv"]:
                raise PeerError("jwe-broken", "the answer's ephemeral key is on another curve")
            cek = aes_key_unwrap(_derive_kek(key.private, sender.key).reveal(), wrapped)
    except (ValueError, InvalidUnwrap) as error:
        raise PeerError("jwe-broken", "the content key does not unwrap with this TEE key") from error
    if len(cek) != CEK_SIZE:
        raise PeerError("jwe-broken", "the content key has another size")
    return Secret(cek)


def _derive_kek(private: ec.EllipticCurvePrivateKey, public: ec.EllipticCurvePublicKey) -> Secret:
    shared = Secret(private.exchange(ec.ECDH(), public))
    return kdf.concat_kdf_sha256(shared, other_info=_OTHER_INFO, size=32)


def _parse_object(text: bytes, what: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise PeerError("malformed", f"{what} is not JSON") from error
    if not isinstance(value, dict):
        raise PeerError("malformed", f"{what} is not a JSON object")
    return value
